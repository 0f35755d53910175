"""Tiny encoders with random weights, of the official classes, written as ``save_pretrained`` does."""

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    BitImageProcessor,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    RobertaConfig,
    RobertaModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from lever_mlflow import mini

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = [*"[PAD] [UNK] [CLS] [SEP] [MASK] what is the thing number digit a of".split(), *"0123456789?"]


def write(folder, model_class, config, *parts, seed=0):
    torch.manual_seed(seed)
    model = model_class(config)
    for parameter in model.parameters():  # so that features of different inputs differ clearly
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder


def clip_words():
    """The tokenizer of the embedded CLIP, which knows the words of the embedded data set."""
    return CLIPTokenizer.from_pretrained(mini.CLIP_PATH)


def bert_words():
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def siglip(folder):
    words = clip_words()
    text = {**SIZES, "vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 32, "pad_token_id": 0}
    config = SiglipConfig(text_config=text, vision_config={**SIZES, "image_size": 28, "patch_size": 14})
    images = SiglipImageProcessor(size={"height": 28, "width": 28})
    return write(folder, SiglipModel, config, SiglipProcessor(images, words))


def siglip2(folder):
    words = clip_words()
    text = {**SIZES, "vocab_size": len(words), "max_position_embeddings": 64, "projection_size": 32, "pad_token_id": 0}
    config = Siglip2Config(text_config=text, vision_config={**SIZES, "num_patches": 16, "patch_size": 14})
    images = Siglip2ImageProcessor(patch_size=14, max_num_patches=16)
    return write(folder, Siglip2Model, config, Siglip2Processor(images, words))


def chinese_clip(folder):
    words = bert_words()
    text = {**SIZES, "vocab_size": len(words), "max_position_embeddings": 32}
    config = ChineseCLIPConfig(text_config=text, vision_config={**SIZES, "image_size": 28, "patch_size": 14}, projection_dim=16)
    images = ChineseCLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
    return write(folder, ChineseCLIPModel, config, ChineseCLIPProcessor(images, words))


def bert(folder):
    words = bert_words()
    return write(folder, BertModel, BertConfig(**SIZES, vocab_size=len(words), max_position_embeddings=32), words)


def roberta(folder):
    """Its positions begin behind the number of the padding token."""
    words = bert_words()
    config = RobertaConfig(**SIZES, vocab_size=len(words), max_position_embeddings=34, pad_token_id=1)
    return write(folder, RobertaModel, config, words)


def vit(folder):
    images = ViTImageProcessor(size={"height": 28, "width": 28})
    return write(folder, ViTModel, ViTConfig(**SIZES, image_size=28, patch_size=14), images)


def dinov2(folder):
    images = BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    return write(folder, Dinov2Model, config, images)


BOTH = {"siglip": siglip, "siglip2": siglip2, "chinese_clip": chinese_clip}
TEXTS = {"bert": bert, "roberta": roberta}
IMAGES = {"vit": vit, "dinov2": dinov2}

"""Writes tiny models of official classes with random weights, each with a tokenizer, an image processor and a chat template.

Their answers mean nothing. They show that a family's processor and ``generate`` work with our prompts.
"""

from pathlib import Path

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from lever_mlflow import mini

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
TEMPLATE = (mini.VLM_PATH / "chat_template.jinja").read_text()


def tokenizer(*special, **named):
    """The tokenizer of the embedded VLM with further special tokens; named ones are attributes too."""
    return Qwen2Tokenizer.from_pretrained(
        mini.VLM_PATH, extra_special_tokens=[*special, *named.values()], **named, padding_side="left"
    )


def token_ids(words, *names):
    return words.convert_tokens_to_ids(list(names))


def vision_tokens(words):
    """The ids that configurations of Qwen-VL hold."""
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return dict(zip(keys, token_ids(words, *names), strict=True))


def numbers(words):
    """What the configuration of a language model holds of its tokenizer."""
    return {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}


def write(folder, model_class, config, processor, seed=0):
    """Writes a model with random weights, large enough that answers differ, and its processor."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def qwen2_vl(folder):
    words = tokenizer()
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
    images, videos = Qwen2VLImageProcessor(size=size), Qwen2VLVideoProcessor(size=size)
    processor = Qwen2VLProcessor(images, words, videos, chat_template=TEMPLATE)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE, **numbers(words)},
        vision_config=vision,
        **vision_tokens(words),
    )
    return write(folder, Qwen2VLForConditionalGeneration, config, processor)


def qwen3_vl(folder):
    words = tokenizer()
    size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessor(size=size, patch_size=16)
    processor = Qwen3VLProcessor(images, words, Qwen3VLVideoProcessor(size=size), chat_template=TEMPLATE)
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 256,
    }
    config = Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 16, "rope_parameters": {**MROPE, "mrope_interleaved": True}, **numbers(words)},
        vision_config=vision,
        **vision_tokens(words),
    )
    return write(folder, Qwen3VLForConditionalGeneration, config, processor)


def qwen3_5(folder):
    words = tokenizer()
    size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessor(size=size, patch_size=16)
    processor = Qwen3VLProcessor(images, words, Qwen3VLVideoProcessor(size=size), chat_template=TEMPLATE)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 256,
    }
    text = {
        **TEXT,
        "head_dim": 16,
        "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        **numbers(words),
    }
    config = Qwen3_5Config(
        text_config=text,
        vision_config=vision,
        **vision_tokens(words),
    )
    return write(folder, Qwen3_5ForConditionalGeneration, config, processor)


# A template of the form that these families use: their image token, then the text, and turns between two marks.
PLAIN_TEMPLATE = (
    "{{% for message in messages %}}{turn}{{{{ message['role'] }}}}\n"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{end}\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}{turn}assistant\n{{% endif %}}"
)
LLAMA = {**TEXT, "model_type": "llama"}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}


def idefics3(folder):
    words = tokenizer("<global-img>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)))
    images = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}, do_image_splitting=False)
    template = PLAIN_TEMPLATE.format(turn="<|im_start|>", image="<image>", end="<end_of_utterance>")
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=template)
    vision = {**SIGLIP, "image_size": 56, "patch_size": 14}
    text = {**LLAMA, **numbers(words)}
    (image,) = token_ids(words, "<image>")
    config = Idefics3Config(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=image, pad_token_id=words.pad_token_id
    )
    return write(folder, Idefics3ForConditionalGeneration, config, processor)


def gemma3(folder):
    words = tokenizer(
        "<start_of_turn>",
        "<end_of_turn>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    template = PLAIN_TEMPLATE.format(turn="<start_of_turn>", image="<start_of_image>", end="<end_of_turn>")
    processor = Gemma3Processor(images, words, chat_template=template, image_seq_length=4)
    text = {**TEXT, **numbers(words), "head_dim": 16, "sliding_window": 512}
    image, begin, end = token_ids(words, "<image_soft_token>", "<start_of_image>", "<end_of_image>")
    config = Gemma3Config(
        text_config=text,
        vision_config={**SIGLIP, "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=image,
        image_token_id=image,
        boi_token_index=begin,
        eoi_token_index=end,
    )
    return write(folder, Gemma3ForConditionalGeneration, config, processor, seed=1)  # with 0 all answers are equal


def internvl(folder):
    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=False)
    template = PLAIN_TEMPLATE.format(turn="<|im_start|>", image="<IMG_CONTEXT>", end="<|im_end|>")
    processor = InternVLProcessor(
        images, words, InternVLVideoProcessor(size={"height": 56, "width": 56}), image_seq_length=4, chat_template=template
    )
    (image,) = token_ids(words, "<IMG_CONTEXT>")
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [56, 56],
        "patch_size": [14, 14],
    }
    config = InternVLConfig(
        text_config={**TEXT, **numbers(words), "model_type": "qwen2"},
        vision_config=vision,
        image_token_id=image,
        image_seq_length=4,
    )
    return write(folder, InternVLForConditionalGeneration, config, processor)


def llava_onevision(folder):
    words = tokenizer(image_token="<image>", video_token="<video>")
    size = {"height": 56, "width": 56}
    images = LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[56, 56], [112, 56], [56, 112]])
    template = PLAIN_TEMPLATE.format(turn="<|im_start|>", image="<image>", end="<|im_end|>")
    processor = LlavaOnevisionProcessor(
        images,
        words,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    image, video = token_ids(words, "<image>", "<video>")
    vision = {**SIGLIP, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}
    config = LlavaOnevisionConfig(
        text_config={**TEXT, **numbers(words), "model_type": "qwen2"},
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        image_grid_pinpoints=[[56, 56], [112, 56], [56, 112]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return write(folder, LlavaOnevisionForConditionalGeneration, config, processor)


FAST = {"qwen2_vl": qwen2_vl, "qwen3_vl": qwen3_vl, "qwen3_5": qwen3_5}
GENERIC = {"idefics3": idefics3, "gemma3": gemma3, "internvl": internvl, "llava_onevision": llava_onevision}

"""Trains the tiny CLIP on pairs of an image and a caption, and on pairs of a question and a caption.

Captions speak of ink, slant and opening words, and only about one in three also names the digit or the topic, as captions of
photographs speak of everything but the one detail that a question asks for. So similar features often mean the same digit and
family, but not always. The features do hold the digit and the family, and a selector can learn to look at these alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from lever_mlflow.mini.dataset import IMAGE_SIZE
from lever_mlflow.mini.families import FAMILIES
from lever_mlflow.mini.making.augment import augment, gray_images
from lever_mlflow.mini.making.train_vlm import save_model

__all__ = ["describe_images", "draw_questions", "train_clip"]

_DIGIT_WORDS = next(family.answers for family in FAMILIES if family.name == "english")
_IMAGE_CAPTIONS = ("a {ink} handwritten {digit} leaning {slant}", "the digit {digit}, {ink}, {slant} slant")
_VAGUE_IMAGE_CAPTIONS = ("a {ink} handwritten sign leaning {slant}", "some digit, {ink}, {slant} slant")
_QUESTION_CAPTIONS = ('a question about the {topic} that opens with "{form}"', "{form} ... the {topic}, somebody asks")
_VAGUE_QUESTION_CAPTIONS = ('a question that opens with "{form}"', "{form} ... somebody asks")
_NAMED = 0.35  # share of captions that name the digit or the topic
_VOCABULARY_SIZE = 1400
_BATCH = 128
_LEARNING_RATE = 1e-3


def train_clip(out: Path, seed: int, steps: int) -> None:
    """Trains CLIP from scratch and writes model and processor to ``out``."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    processor = build_processor()
    model = build_model(processor)
    gray_NHW, digits_N = gray_images("model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_LEARNING_RATE, total_steps=steps)
    for step in tqdm(range(1, steps + 1), desc="clip", mininterval=10):
        rows = rng.integers(len(gray_NHW), size=_BATCH)
        images_NHW = augment(gray_NHW[rows], generator)
        captions = describe_images(rng, images_NHW, digits_N[rows])
        questions, topics = draw_questions(rng, _BATCH)
        loss = _contrast(model, _encode_images(model, processor, images_NHW), _encode_texts(model, processor, captions))
        loss = loss + _contrast(model, _encode_texts(model, processor, questions), _encode_texts(model, processor, topics))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            tqdm.write(f"clip step {step}: loss {loss.item():.3f}")
    save_model(model, processor, out)


def describe_images(rng: np.random.Generator, gray_NHW: torch.Tensor, digits_N: np.ndarray) -> list[str]:
    """Returns a caption of each image, with its digit, and with its ink and slant as measured on the pixels."""
    ink_N, slant_N = _ink_and_slant(gray_NHW)
    inks = np.select([ink_N < 0.275, ink_N < 0.32], ["thin", "medium"], "bold")
    slants = np.select([slant_N < -0.12, slant_N < 0.035], ["left", "upright"], "right")
    return [
        _draw_caption(rng, _IMAGE_CAPTIONS, _VAGUE_IMAGE_CAPTIONS).format(digit=_DIGIT_WORDS[int(digit)], ink=ink, slant=slant)
        for digit, ink, slant in zip(digits_N, inks, slants, strict=True)
    ]


def draw_questions(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """Draws questions of random families, and a caption of each with its topic and its first word."""
    questions, captions = [], []
    for _ in range(count):
        family = FAMILIES[rng.integers(len(FAMILIES))]
        question = family.phrasings[rng.integers(3)]
        questions.append(question)
        caption = _draw_caption(rng, _QUESTION_CAPTIONS, _VAGUE_QUESTION_CAPTIONS)
        captions.append(caption.format(topic=family.name.replace("_", " "), form=question.split()[0]))
    return questions, captions


def _draw_caption(rng: np.random.Generator, naming: tuple[str, ...], vague: tuple[str, ...]) -> str:
    """Draws the template of a caption, one that names the digit or the topic in a share ``_NAMED`` of the cases."""
    return str(rng.choice(naming if rng.random() < _NAMED else vague))


def _ink_and_slant(gray_NHW: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean gray value, and the horizontal shift of the ink per row, which is positive where it leans right."""
    axis = torch.linspace(-1, 1, gray_NHW.shape[-1])
    mass_N = gray_NHW.sum(dim=(1, 2)).clamp(min=1e-6)
    x_N = (gray_NHW.sum(dim=1) * axis).sum(dim=1) / mass_N
    y_N = (gray_NHW.sum(dim=2) * axis).sum(dim=1) / mass_N
    dx_NW, dy_NH = axis - x_N[:, None], axis - y_N[:, None]
    covariance_N = torch.einsum("nhw,nh,nw->n", gray_NHW, dy_NH, dx_NW)
    variance_N = torch.einsum("nhw,nh->n", gray_NHW, dy_NH**2).clamp(min=1e-6)
    return gray_NHW.mean(dim=(1, 2)).numpy(), (-covariance_N / variance_N).numpy()


def _encode_images(model: CLIPModel, processor: CLIPProcessor, gray_NHW: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    pixels = (gray_NHW[:, None] - mean) / std
    return F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def _encode_texts(model: CLIPModel, processor: CLIPProcessor, texts: list[str]) -> torch.Tensor:
    """Encodes each different text once, so that equal texts have the same feature and count as positives of each other."""
    unique, inverse = np.unique(texts, return_inverse=True)
    tokens = processor.tokenizer(list(unique), padding=True, return_tensors="pt")
    features = model.get_text_features(**tokens).pooler_output
    return F.normalize(features, dim=-1)[torch.from_numpy(inverse)]


def _contrast(model: CLIPModel, left_ND: torch.Tensor, right_ND: torch.Tensor) -> torch.Tensor:
    """Returns CLIP's symmetric loss; equal captions of a batch share the target probability."""
    logits_NN = model.logit_scale.exp().clamp(max=30) * left_ND @ right_ND.T
    same_NN = (right_ND.detach() @ right_ND.detach().T > 1 - 1e-5).float()
    target_NN = same_NN / same_NN.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits_NN, target_NN) + F.cross_entropy(logits_NN.T, target_NN)) / 2


def build_processor() -> CLIPProcessor:
    """Builds the processor, for 56x56 images and with a lower-case BPE tokenizer trained on questions and captions."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    return CLIPProcessor(image_processor=images, tokenizer=_train_tokenizer())


def _corpus() -> list[str]:
    questions = [text for family in FAMILIES for text in family.phrasings]
    topics = [
        caption.format(topic=family.name.replace("_", " "), form=text.split()[0])
        for family in FAMILIES
        for text in family.phrasings
        for caption in (*_QUESTION_CAPTIONS, *_VAGUE_QUESTION_CAPTIONS)
    ]
    images = [
        caption.format(digit=word, ink=ink, slant=slant)
        for caption in (*_IMAGE_CAPTIONS, *_VAGUE_IMAGE_CAPTIONS)
        for word in _DIGIT_WORDS.values()
        for ink in ("thin", "medium", "bold")
        for slant in ("left", "upright", "right")
    ]
    return (questions + topics + images) * 2


def _train_tokenizer() -> CLIPTokenizer:
    empty: Any = CLIPTokenizer()
    base = empty.backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = base.normalizer, base.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE,
        initial_alphabet=alphabet,
        # Each byte is also a token at the end of a word, so that any text can be encoded. They are named here in a fixed order
        # because the trainer would number them at random, and numbers decide between merges of equal frequency.
        special_tokens=[f"{byte}</w>" for byte in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    tags = {tag: len(learned["vocab"]) + i for i, tag in enumerate(("<|startoftext|>", "<|endoftext|>"))}
    vocabulary = learned["vocab"] | tags
    merges: Any = [(left, right) for left, right in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def build_model(processor: CLIPProcessor) -> CLIPModel:
    """Builds a randomly initialised CLIP of about 1 M parameters with 512 projected features."""
    layer = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    config = CLIPConfig(
        projection_dim=512,
        text_config={
            **layer,
            "num_hidden_layers": 2,
            "vocab_size": len(processor.tokenizer),
            "max_position_embeddings": 77,
            "bos_token_id": processor.tokenizer.bos_token_id,
            "eos_token_id": processor.tokenizer.eos_token_id,
            "pad_token_id": processor.tokenizer.pad_token_id,
            "projection_dim": 512,
        },
        vision_config={
            **layer,
            "num_hidden_layers": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
            "projection_dim": 512,
        },
    )
    return CLIPModel(config)

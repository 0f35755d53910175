"""Runs the Qwen-VL families in this process on a fast path.

A prompt costs only what is new in it: each image goes through the vision tower once, and a prompt is read once for all beams.
On a CPU, a small model answers several batches at a time, one on each core.

Shapes: P prompts, L tokens of a prompt, R rows (one for each answer that is scored), T tokens of an answer, V words of the
vocabulary, I images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lever_mlflow.files.strict_json import read_object
from lever_mlflow.vlm.local import LocalVLM, model_type, samples_of
from lever_mlflow.vlm.prompt import Prompt, build_messages, plain_text, score_key
from lever_mlflow.vlm.threads import copies
from lever_mlflow.vlm.vision_cache import ImageFeatures, VisionCache, encoder_output, visual_tokens

__all__ = ["FAMILIES", "QwenVLM"]

FAMILIES = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16, "qwen3_5": 16}  # model types, and the default side of a patch

# On a CPU, up to this size a model answers a batch on each core. A larger one keeps all cores busy by itself, and several
# batches at a time would only take more memory. The embedded VLM has 1,002,944 parameters, the smallest Qwen2.5-VL 3 billion.
_SMALL_MODEL = 20_000_000
_SMALL_MODEL_TOKENS = 2_048  # most tokens of its batches: enough that the cores get equal shares, and not slower on one core


class _Batch(NamedTuple):
    """Holds prompts of one batch as the model takes them.

    Attributes:
        prompts: the prompts.
        ids_PL, mask_PL: token ids and attention mask, int64, padded on the left.
        images: features and patches of each image, in the order of the prompts.
    """

    prompts: list[Prompt]
    ids_PL: Any
    mask_PL: Any
    images: list[ImageFeatures]


class QwenVLM(LocalVLM):
    """Answers prompts with a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Qwen3.5, and says how probable right answers are.

    Arguments are those of ``LocalVLM``. A small model on ``cpu`` has batches of at most 2,048 tokens, for any larger number.
    """

    @property
    def max_aspect(self) -> float:
        """Returns the aspect ratio (longer by shorter side) from which on the VLM takes no image.

        The families take no ratio above 200, and none at which the shorter side has less than one visual token after resizing.
        """
        return min(200.0, self.profile.max_pixels / self._token_side**2)

    @cached_property
    def _token_side(self) -> int:
        """Returns the side in pixels of the square of an image that becomes one visual token."""
        config = read_object(self.folder / "config.json", missing="give a model folder", damaged="copy the model again")
        vision = config.get("vision_config", {})
        return int(vision.get("patch_size", FAMILIES[model_type(self.folder)]) * vision.get("spatial_merge_size", 2))

    @cached_property
    def vision(self) -> VisionCache:
        """Returns the features of the images that the model has seen."""
        return VisionCache(*self.loaded, self.profile, self._token_side)

    def check_scores(self) -> None:
        """Accepts that answers are scored, which this VLM can do."""

    def score_key(self, prompt: Prompt) -> str:
        """Returns a digest of all that the score of a prompt depends on."""
        return score_key(prompt, self.key(prompt))

    def score(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Yields how probable right answers are after each prompt, the ``gt_prob``; batches, order and errors as ``generate``.

        ``gt_prob``, in [0, 1], is the sum over the annotators' different answers of VQA accuracy times teacher-forced
        probability, end of turn included. It is the VQA accuracy to be expected of an answer drawn from the model, if all other
        answers are wrong. It is given as text, the form in which the answer cache stores it.
        """
        yield from self._in_batches(prompts, self._gt_probs, [len(set(prompt.query.answers)) for prompt in prompts])

    @property
    def _small(self) -> bool:
        """Returns whether batches are answered in threads, if PyTorch may use several."""
        return self.device == "cpu" and sum(part.numel() for part in self.loaded.model.parameters()) <= _SMALL_MODEL

    @property
    def _most_tokens(self) -> int:
        """Returns the limit of tokens for the next batches.

        It does not depend on the number of threads, so that the digits of scores do not either.
        """
        return min(self.batch_tokens, _SMALL_MODEL_TOKENS) if self._small else self.batch_tokens

    def _models(self) -> list[Any]:
        """Returns a model for each thread. Threads cannot share one, as it keeps ``rope_deltas`` of the prompts last read."""
        import torch

        return copies(self.loaded.model, torch.get_num_threads() if self._small else 1)

    def _tokens(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Returns the token ids of each prompt, with one placeholder for each image."""
        processor = self.loaded.processor
        conversations = [build_messages(*prompt, self.profile) for prompt in prompts]
        texts = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        return [np.array(ids) for ids in processor.tokenizer(texts)["input_ids"]]

    def _lengths(self, prompts: Sequence[Prompt], tokens: Sequence[np.ndarray]) -> list[int]:
        """Returns the number of tokens of each prompt for the model: an image's placeholder counts once per visual token."""
        images = [
            sum(visual_tokens(sample.image_path, self.profile, self._token_side) - 1 for sample in samples_of(prompt))
            for prompt in prompts
        ]
        return [len(tokens_L) + more for tokens_L, more in zip(tokens, images, strict=True)]

    def _batch(self, prompts: list[Prompt], tokens: list[np.ndarray]) -> _Batch:
        """Returns prompts as the model takes them.

        Only the calling thread of ``generate`` comes here: the vision cache is not made for several threads. Nothing pads by
        the tokenizer, which would change the state of the one tokenizer; without padding, threads may share it.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        processor = self.loaded.processor
        images = self.vision.features([sample.image_path for prompt in prompts for sample in samples_of(prompt)])
        sizes, rows = iter([len(image.tokens) for image in images]), []
        for prompt, tokens_L in zip(prompts, tokens, strict=True):
            repeats_L = np.ones_like(tokens_L)
            repeats_L[tokens_L == processor.image_token_id] = [next(sizes) for _ in samples_of(prompt)]
            rows.append(torch.from_numpy(np.repeat(tokens_L, repeats_L)))
        # Generation continues at the right end of each prompt.
        ids_PL = pad_sequence(rows, batch_first=True, padding_value=processor.tokenizer.pad_token_id, padding_side="left")
        mask_PL = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        return _Batch(prompts, ids_PL.to(self.device), mask_PL.to(self.device), images)

    def _answers(self, model: Any, batch: _Batch) -> list[str]:
        """Returns the raw generations of one batch."""
        import torch

        beams_R = torch.arange(len(batch.prompts), device=self.device).repeat_interleave(self.profile.num_beams)
        with torch.inference_mode():
            key_values = self._read(model, batch)
            key_values.reorder_cache(beams_R)
            inputs = {"input_ids": batch.ids_PL, "attention_mask": batch.mask_PL, "past_key_values": key_values}
            output = model.generate(**inputs, **self.generation)
        new_tokens = output[:, batch.ids_PL.shape[1] :]
        return list(self.loaded.processor.batch_decode(new_tokens, skip_special_tokens=True))

    def _gt_probs(self, model: Any, batch: _Batch) -> list[str]:
        """Returns the ``gt_prob`` of the prompts of one batch."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        tokenizer = self.loaded.processor.tokenizer
        answers = [list(dict.fromkeys(prompt.query.answers)) for prompt in batch.prompts]
        row_R = torch.tensor([i for i, texts in enumerate(answers) for _ in texts], device=self.device)
        # as in the demonstrations, an answer begins with a space; the turn ends behind it
        texts = [f" {plain_text(text)}{tokenizer.eos_token}" for group in answers for text in group]
        targets = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
        targets_RT = pad_sequence(targets, batch_first=True, padding_value=tokenizer.pad_token_id).to(self.device)
        shown_RT = pad_sequence([torch.ones_like(ids) for ids in targets], batch_first=True).to(self.device)
        with torch.inference_mode():
            key_values = self._read(model, batch)
            key_values.reorder_cache(row_R)
            mask = torch.cat([batch.mask_PL[row_R], shown_RT[:, :-1]], dim=1)
            ids_RT = torch.cat([batch.ids_PL[row_R, -1:], targets_RT[:, :-1]], dim=1)
            places_RT = (mask.cumsum(1) - 1)[:, -ids_RT.shape[1] :] + model.model.rope_deltas[row_R]
            places_3RT = places_RT.expand(3, -1, -1)
            output = model(input_ids=ids_RT, attention_mask=mask, past_key_values=key_values, position_ids=places_3RT)
            steps_RTV = output.logits.float().log_softmax(-1)
        logprobs_RT = steps_RTV.gather(2, targets_RT[..., None]).squeeze(2) * shown_RT
        probabilities = iter(logprobs_RT.sum(1).double().exp().tolist())
        return [
            repr(sum(next(probabilities) * prompt.query.accuracy(text) for text in group))
            for prompt, group in zip(batch.prompts, answers, strict=True)
        ]

    def _read(self, model: Any, batch: _Batch) -> Any:
        """Runs the model over all tokens of the prompts but the last one, and returns its keys and values.

        ``generate`` continues from them, for each beam. On its own it would read the prompt once per beam.
        """
        import torch

        types_PL = (batch.ids_PL == self.loaded.processor.image_token_id).long()  # 1 for tokens of an image
        grids_I3 = torch.stack([image.grid for image in batch.images]).to(self.device)
        output = model(
            input_ids=batch.ids_PL[:, :-1],
            attention_mask=batch.mask_PL[:, :-1],
            mm_token_type_ids=types_PL[:, :-1],
            image_grid_thw=grids_I3,
            mm_encoder_outputs={"image": encoder_output(batch.images, self.device, model.dtype)},
            use_cache=True,
            logits_to_keep=1,
        )
        return output.past_key_values

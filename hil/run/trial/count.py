"""One cell in one process: sample, decode every way on the same shots, count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from gpu_decoder.ising.config import PredecoderConfig, build_predecoder
from gpu_decoder.ising.logits import Logits
from gpu_decoder.ising.pair_rule import PairRule
from gpu_decoder.ising.predecoder import Predecoded
from gpu_decoder.ising.tensors import Layout, threshold
from gpu_decoder.ising.weights import load_weights
from gpu_decoder.matching import MatchingDecoder
from gpu_decoder.protocol import U8Array
from hil.run.trial.cells import PAIR_RULE, Cell, Chain, Subject, Tally
from hil.seeds import word

BATCH: Final = 64
"""Shots per call of the network: larger ones are not faster and take more memory."""

SLICE: Final = 200
"""Shots that one input is matched before the next input has its turn."""

_PLAIN: Final = ""


class CellBench:
    """Everything that counts one cell, built once per process.

    Args:
        cell: circuit and noise.
        subject: what is put to the trial.

    Raises:
        WeightsError: the weights cannot be used.
        RuntimeUnavailable: the runtime is not installed.
    """

    def __init__(self, cell: Cell, subject: Subject) -> None:
        import stim

        self._cell = cell
        self._circuit = stim.Circuit(cell.circuit_text(subject.orientation))
        model = self._circuit.detector_error_model(
            decompose_errors=True, approximate_disjoint_errors=True
        )
        layout = cell.layout(subject.orientation, keep_last=subject.keep_last)
        self._plain = MatchingDecoder(str(model), correlated=False)
        self._correlated = MatchingDecoder(str(model), correlated=True)
        self._rule = PairRule(str(model))
        self._network = _network(layout, subject, str(model))
        self._seen = np.packbits(seen_detectors(layout), bitorder="little")

    def block(self, seed: int, purpose: str, number: int, shots: int) -> Tally:
        """Count a block of shots; equal arguments give equal counts (times apart)."""
        sampler = self._circuit.compile_detector_sampler(
            seed=word(seed, "trial", purpose, self._cell.name, number)
        )
        detectors, truth = sampler.sample(shots, separate_observables=True, bit_packed=True)
        correlated = (self._correlated.decode_batch(detectors).predictions_b8 != truth)[:, 0]
        parts = [self._network(detectors[k : k + BATCH]) for k in range(0, shots, BATCH)]
        answers = {name: _joined([part[name] for part in parts]) for name in parts[0]}
        answers[PAIR_RULE] = self._rule.predecode(detectors)
        left = {name: answer.residual_b8 for name, answer in answers.items()}
        matched, spent = self._match({_PLAIN: detectors, **left})
        plain = matched[_PLAIN] != truth[:, 0]
        chains = {}
        for name, answer in answers.items():
            wrong = (matched[name] ^ answer.pre_l) != truth[:, 0]
            chains[name] = Chain(
                failures=int(wrong.sum()),
                worse=int((wrong & ~plain).sum()),
                better=int((plain & ~wrong).sum()),
                events=self._events(answer.residual_b8),
                matching_ns=spent[name],
            )
        return Tally(
            shots, int(plain.sum()), int(correlated.sum()), self._events(detectors),
            spent[_PLAIN], chains,
        )  # fmt: skip

    def _match(self, inputs: Mapping[str, U8Array]) -> tuple[dict[str, U8Array], dict[str, int]]:
        """Plain matching of several inputs in turn, slice by slice, so that all share the weather.

        Returns:
            Flip of the observable, uint8 [n], and CPU time in nanoseconds, by name.
        """
        answers: dict[str, list[U8Array]] = {name: [] for name in inputs}
        spent = dict.fromkeys(inputs, 0)
        shots = len(next(iter(inputs.values())))
        for k in range(0, shots, SLICE):
            for name, detectors in inputs.items():
                begin = time.thread_time_ns()
                batch = self._plain.decode_batch(detectors[k : k + SLICE])
                spent[name] += time.thread_time_ns() - begin
                answers[name].append(batch.predictions_b8[:, 0])
        return {name: np.concatenate(parts) for name, parts in answers.items()}, spent

    def _events(self, detectors_b8: U8Array) -> int:
        return int(np.bitwise_count(detectors_b8 & self._seen).sum())


def seen_detectors(layout: Layout) -> np.ndarray:
    """Bool [N]: all detectors but those of the other basis in the last round.

    The reference drops that block without decoding it, so it would count in favour of a network.
    """
    half = layout.geometry.half
    seen = np.ones(layout.n_detectors, dtype=np.bool_)
    first = half + (layout.rounds - 2) * 2 * half + (half if layout.basis == "X" else 0)
    seen[first : first + half] = False
    return seen


def _network(
    layout: Layout, subject: Subject, dem_text: str
) -> Callable[[U8Array], Mapping[str, Predecoded]]:
    """Answers by name of the thresholds, for uint8 [n, ceil(N/8)]."""
    if len(subject.thresholds) == 1:
        ((name, (data, syndrome)),) = subject.thresholds.items()
        config = PredecoderConfig(
            distance=layout.geometry.distance, rounds=layout.rounds, basis=layout.basis,
            orientation=layout.geometry.orientation, weights=subject.weights,
            keep_last=subject.keep_last, threshold_data=data, threshold_syndrome=syndrome,
            backend=subject.backend,
        )  # fmt: skip
        predecoder = build_predecoder(config, dem_text)
        return lambda detectors_b8: {name: predecoder.predecode(detectors_b8)}
    logits = Logits(load_weights(subject.weights), layout, subject.backend)

    def sweep(detectors_b8: U8Array) -> Mapping[str, Predecoded]:
        bits = np.unpackbits(detectors_b8, axis=1, count=layout.n_detectors, bitorder="little")
        found = logits(bits)
        answers = {}
        for name, (data, syndrome) in subject.thresholds.items():
            out = layout.residual(bits, threshold(found, data, syndrome))
            packed = np.packbits(out[:, 1:], axis=1, bitorder="little")
            answers[name] = Predecoded(out[:, 0].copy(), packed)
        return answers

    return sweep


def _joined(parts: list[Predecoded]) -> Predecoded:
    return Predecoded(
        np.concatenate([part.pre_l for part in parts]),
        np.concatenate([part.residual_b8 for part in parts]),
    )

"""What a run does at each step, planned before the first: its rate, and what its batch is drawn as.

    phases     as the user lists them; a run without a list is one phase
    schedules  a phase that writes something of the rate begins one, the others go on with it
    stretches  steps whose batches are drawn alike, maybe of several phases; a growing batch is several

Pure functions of the step, so that a run that goes on needs no state of a scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from nystromformer.errors import UserError
from nystromformer.settings import TrainingSettings
from nystromformer.settings.training import PhaseSettings

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
    "sqrt": lambda left: 1 - math.sqrt(1 - left),
    "none": lambda left: 1.0,
}
"""Share of the rate by the share of the decay that is left, from 1 to 0."""


@dataclass(frozen=True)
class Drawing:
    """What the examples of a batch are drawn as."""

    max_length: int
    """Tokens of a row."""
    masking_probability: float
    weights: tuple[float, ...] = ()
    """Of the corpus' sources; empty for all examples once an epoch."""

    def __str__(self) -> str:
        weighed = f", sources weighed {', '.join(f'{w:g}' for w in self.weights)}" if self.weights else ""
        return f"at most {self.max_length} tokens, {self.masking_probability:.0%} masked{weighed}"


@dataclass(frozen=True)
class Stretch:
    """Steps whose batches are alike."""

    first_step: int
    steps: int
    first_row: int
    """Rows that were drawn before."""
    batch_size: int
    drawing: Drawing

    @property
    def last_step(self) -> int:
        """The first step behind it."""
        return self.first_step + self.steps


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a stable part and a decay over the steps of one or more phases."""

    first_step: int
    steps: int
    learning_rate: float
    warmup_steps: int
    decay: str
    decay_steps: int
    decay_to: float

    def share(self, step: int) -> float:
        """Of the rate, at a step of the run, counted from 0."""
        step -= self.first_step
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        left = self.steps - step
        if left > self.decay_steps:
            return 1.0
        return self.decay_to + (1.0 - self.decay_to) * SHAPES[self.decay](left / self.decay_steps)


@dataclass(frozen=True)
class Phase:
    """Where a phase is, and what it is in words."""

    first_step: int
    steps: int
    told: str


@dataclass(frozen=True)
class Plan:
    """All steps of a run."""

    phases: tuple[Phase, ...]
    schedules: tuple[Schedule, ...]
    stretches: tuple[Stretch, ...]

    @property
    def steps(self) -> int:
        return self.stretches[-1].last_step

    @property
    def batch_sizes(self) -> str:
        """In words: 256, or 64 to 256."""
        return _range([stretch.batch_size for stretch in self.stretches])

    @property
    def rates(self) -> str:
        """Highest rates in words: 0.0001, or 0.0001 to 0.001."""
        return _range([schedule.learning_rate for schedule in self.schedules])

    def rate(self, step: int, time_spent: float = 0.0) -> float:
        """Learning rate of a step, counted from 0.

        Args:
            time_spent: share of `max_minutes` that is over; on a machine too slow for all the steps the
                rate falls to zero over the minutes instead.
        """
        schedule = next(each for each in reversed(self.schedules) if each.first_step <= step)
        share = schedule.share(step)
        # Behind: on schedule, the rate does not depend on the clock.
        if time_spent > self.work(step) / self.work(self.steps):
            share = min(share, 1.0 - time_spent)
        return schedule.learning_rate * max(share, 0.0)

    def stretch(self, step: int) -> Stretch:
        """The one that a step, counted from 0, belongs to; behind the last step the last one."""
        return next((each for each in self.stretches if step < each.last_step), self.stretches[-1])

    def work(self, step: int) -> int:
        """Tokens of full rows before a step: what time is expected by."""
        return sum(
            max(min(step, each.last_step) - each.first_step, 0) * each.batch_size * each.drawing.max_length
            for each in self.stretches
        )

    def time_left(self, step: int, steps: int, seconds: float) -> float:
        """Seconds that the steps after `step` take, where the last `steps` took so many."""
        done = self.work(step)
        return seconds * (self.work(self.steps) - done) / (done - self.work(step - steps))

    def reached_by(self, work: float) -> float:
        """How many steps so much work makes."""
        for each in self.stretches:
            of_stretch = each.steps * each.batch_size * each.drawing.max_length
            if work <= of_stretch:
                return each.first_step + each.steps * work / of_stretch
            work -= of_stretch
        return float(self.steps)


@dataclass(frozen=True)
class _Stage:
    """Steps of one phase with one size of batch."""

    steps: int
    batch_size: int
    drawing: Drawing
    row_tokens: float

    @property
    def tokens(self) -> float:
        return self.steps * self.batch_size * self.row_tokens


def plan_of(
    training: TrainingSettings,
    *,
    max_length: int = 1,
    masking_probability: float = 0.15,
    row_tokens: Callable[[Drawing], float] | None = None,
) -> Plan:
    """The plan of a run.

    Args:
        max_length: tokens of a row where a phase says nothing.
        masking_probability: where a phase says nothing.
        row_tokens: real tokens of a row, the mean over what is drawn; without it, no length can be in tokens.

    Raises:
        UserError: a warm-up, a decay or the growth of a batch does not fit into its phase.
    """
    written = training.filled_phases()
    stages = []
    for number, phase in enumerate(written):
        drawing = Drawing(
            phase.max_length or max_length,
            phase.masking_probability or masking_probability,
            tuple(phase.weights),
        )
        tokens = row_tokens(drawing) if row_tokens and training.in_tokens else 0.0
        stages.append(list(_stages(phase, drawing, tokens, training, number)))
    lengths = [sum(stage.steps for stage in of_phase) for of_phase in stages]
    firsts = [0, *accumulate(lengths)]
    begins = [number for number, phase in enumerate(written) if number == 0 or phase.begins_schedule]
    schedules = []
    for number, end in zip(begins, [*begins[1:], len(written)], strict=True):
        spanned = [stage for of_phase in stages[number:end] for stage in of_phase]
        schedules.append(_schedule(written[number], firsts[number], spanned, training, number))
    phases = tuple(
        Phase(first, length, _told(phase, of_phase, length, number in begins))
        for number, (phase, of_phase, first, length) in enumerate(
            zip(written, stages, firsts, lengths, strict=False)
        )
    )
    return Plan(phases, tuple(schedules), tuple(_merged([each for part in stages for each in part])))


def _stages(
    phase: PhaseSettings, drawing: Drawing, row_tokens: float, training: TrainingSettings, number: int
) -> Iterator[_Stage]:
    """A phase's sizes of batch: with a warm-up the multiples of its first one, as many tokens each."""
    size = phase.global_batch_size
    assert size is not None
    grown = 0
    grown_tokens = 0.0
    if phase.batch_warmup_from and phase.batch_warmup_tokens and phase.batch_warmup_from < size:
        smaller = range(phase.batch_warmup_from, size, phase.batch_warmup_from)
        for each in smaller:
            steps = max(round(phase.batch_warmup_tokens / len(smaller) / (each * row_tokens)), 1)
            stage = _Stage(steps, each, drawing, row_tokens)
            grown, grown_tokens = grown + stage.steps, grown_tokens + stage.tokens
            yield stage
    if phase.steps is not None:
        left = phase.steps - grown
    else:
        assert phase.tokens is not None
        left = math.ceil((phase.tokens - grown_tokens) / (size * row_tokens))
    if left < 1:
        key = training.key_of(number, "batch_warmup_tokens")
        raise UserError(
            f"{key}={phase.batch_warmup_tokens:g} are {grown} steps, which leaves none of the phase's: write "
            "fewer, or a longer phase"
        )
    yield _Stage(left, size, drawing, row_tokens)


def _schedule(
    phase: PhaseSettings, first: int, stages: list[_Stage], training: TrainingSettings, number: int
) -> Schedule:
    steps = sum(stage.steps for stage in stages)
    warmup, decay = phase.warmup_steps or 0, phase.decay_steps
    if phase.warmup_tokens is not None:
        warmup = _steps_of(phase.warmup_tokens, stages)
    if phase.decay_tokens is not None:
        decay = _steps_of(phase.decay_tokens, stages[::-1])
    assert phase.learning_rate is not None
    assert phase.decay is not None
    assert phase.decay_to is not None
    if decay is None or phase.decay == "none":
        decay = 0 if warmup > steps else steps - warmup
    if warmup + decay > steps:
        keys = " and ".join(
            f"{training.key_of(number, name)}={value:g}"
            for name in ("warmup_steps", "warmup_tokens", "decay_steps", "decay_tokens")
            if (value := getattr(phase, name))
        )
        raise UserError(
            f"{keys}: {warmup} steps of warm-up and {decay} of decay do not fit into the schedule's {steps}: "
            "write fewer, or longer phases"
        )
    return Schedule(first, steps, phase.learning_rate, warmup, phase.decay, max(decay, 1), phase.decay_to)


def _steps_of(tokens: float, stages: Sequence[_Stage]) -> int:
    """How many steps have so many tokens, from the first of the stages on."""
    steps = 0
    for number, stage in enumerate(stages):
        if tokens <= stage.tokens or number == len(stages) - 1:
            return steps + math.ceil(tokens / (stage.batch_size * stage.row_tokens))
        steps, tokens = steps + stage.steps, tokens - stage.tokens
    return steps


def _merged(stages: list[_Stage]) -> Iterator[Stretch]:
    """Stages as stretches, those that draw alike as one."""
    step = row = 0
    while stages:
        first = stages[0]
        alike = (first.batch_size, first.drawing)
        count = next(
            (n for n, each in enumerate(stages) if (each.batch_size, each.drawing) != alike), len(stages)
        )
        steps = sum(stage.steps for stage in stages[:count])
        yield Stretch(step, steps, row, *alike)
        step, row, stages = step + steps, row + steps * first.batch_size, stages[count:]


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _told(phase: PhaseSettings, stages: list[_Stage], steps: int, begins: bool) -> str:
    """A phase in a line."""
    last = stages[-1]
    tokens = sum(stage.tokens for stage in stages)
    parts = [
        f"{steps:,} steps of {_range([stage.batch_size for stage in stages])} rows",
        str(last.drawing),
        *([f"{tokens:,.0f} tokens"] if tokens else []),
    ]
    if begins:
        decay = "constant" if phase.decay == "none" else f"{phase.decay} decay"
        parts.append(f"rate {phase.learning_rate:g}, {decay}")
    return ", ".join(parts)

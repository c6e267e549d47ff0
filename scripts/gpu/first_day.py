"""The first day on a GPU: its tests, attention, whole steps, a pretraining with a kill, fine-tuning.

    python scripts/gpu/first_day.py                        every part that is not finished
    python scripts/gpu/first_day.py parts=tests,attention  these
    python scripts/gpu/first_day.py scale=smoke            on a CPU, to see that everything works
    python scripts/gpu/first_day.py dry_run=1              the commands alone

    out=gpu_day     what is to be kept: at most 8 files of at most 16 MB
    work=gpu_work   runs, prepared text and the state of the parts
    minutes=9       a part that takes longer is ended; pretraining goes on from there when asked again
    again=1         finished parts too

Each part is a few commands of `nystromformer`, and can be run alone: what it needs of another, that part
makes. A part that fails is told of in the summary, the next one runs all the same, and the exit code is 1.
Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from scales import SCALES, Scale

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 16 * 2**20
"""Bytes of a file that is kept."""
LOG_OF_A_PART = 2**20


@dataclass
class Day:
    """One call of this script."""

    scale: Scale
    scale_name: str
    out: Path
    work: Path
    seconds: float
    dry_run: bool = False
    log: TextIO | None = None
    deadline: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    """Of the part that runs."""

    def run(self, *words: str, kill_when: Callable[[], bool] | None = None, **environment: str) -> None:
        """A command, its output into the log; killed without warning as soon as `kill_when` says so.

        Raises:
            Failed: it ended with an error, or the part's time was over.
        """
        shown = " ".join(
            [*(f"{name}={value}" for name, value in environment.items()), *map(shlex.quote, words)]
        )
        print(f"  {shown}", flush=True)
        if self.dry_run:
            return
        assert self.log is not None
        self.log.write(f"$ {shown}\n")
        self.log.flush()
        known = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **environment}
        known["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # A group of its own, so that its loader processes end with it.
        process = subprocess.Popen(
            [sys.executable, *words], stdout=self.log, stderr=subprocess.STDOUT, env=known, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if kill_when is not None and kill_when():
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    self.log.write("killed\n")
                    return
                if time.monotonic() > self.deadline:
                    raise Failed(f"longer than {self.seconds / 60:g} minutes: {shlex.join(words[:4])}")
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            raise Failed(f"exit code {process.returncode}: {shlex.join(words[:4])}")

    def nystromformer(self, *words: str, **how: Any) -> None:
        self.run("-m", "nystromformer", *words, **how)

    @property
    def model(self) -> Path:
        """What the pretraining leaves."""
        return self.work / "runs" / _name(self.scale.pretrain) / "model"


class Failed(Exception):
    """A part did not do what it should."""


# --- the parts ----------------------------------------------------------------------------------------


def tests(day: Day) -> None:
    report = day.work / "tests.xml"
    day.run("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *day.scale.tests)
    if not day.dry_run:
        suite = ElementTree.parse(report).getroot()[0]
        day.figures["tests"] = {name: int(suite.get(name, 0)) for name in ("tests", "skipped")}


def attention(day: Day) -> None:
    """Beside the peers, and beside the floor of memory traffic."""
    lengths = f"lengths=[{','.join(map(str, day.scale.attention_lengths))}]"
    _benchmark(day, "attention", "attention", lengths, *day.scale.attention)


def kernels(day: Day) -> None:
    """Milliseconds of each kernel of attention, beside fused exact attention, and of a compiled step."""
    beside = Path(__file__).with_name
    day.run(str(beside("attention_kernels.py")), f"lengths={','.join(map(str, day.scale.attention_lengths))}")
    day.run(str(beside("step_kernels.py")))


def step(day: Day, lengths: Sequence[int], compiled: bool) -> None:
    """Whole steps and MFU, BERT with PyTorch's fused attention and with dropout on it among them."""
    words = [*day.scale.step, f"lengths=[{','.join(map(str, lengths))}]", f"compile={str(compiled).lower()}"]
    _benchmark(day, "step", f"step_{lengths[0]}" + ("_compiled" if compiled else ""), *words)


def _benchmark(day: Day, what: str, folder: str, *words: str) -> None:
    found = day.work / folder
    day.nystromformer(
        "benchmark", f"what={what}", f"device={day.scale.device}", f"dtype={day.scale.dtype}",
        f"folder={found}", *words,
    )  # fmt: skip
    _note_json(day, f"{folder}/*.json")


def pretrain(day: Day) -> None:
    """Killed after its first checkpoint, resumed to its end; then its figures."""
    words = _pretraining(day)
    latest = day.model.parent / "checkpoints/latest"
    resumed_before = latest.exists()
    if not resumed_before:
        day.nystromformer(*words, kill_when=latest.exists)
    day.nystromformer(*words)
    if day.dry_run:
        return
    events = [json.loads(line) for line in (day.model.parent / "metrics.jsonl").read_text().splitlines()]
    train, held_out = ([e for e in events if e["kind"] == kind] for kind in ("train", "validation"))
    steps = [event["step"] for event in train]
    if steps != sorted(set(steps)):
        raise Failed(f"the resumed run repeats steps: {steps}")
    settled = train[len(train) // 3 :]
    day.figures |= {
        "killed": not resumed_before,
        "steps": steps[-1],
        "first_loss": train[0]["loss"],
        "last_loss": train[-1]["loss"],
        "held_out": held_out[-1],
        **{
            name: sorted(event[name] for event in settled)[len(settled) // 2]
            for name in ("tokens_per_second", "model_flop_utilisation", "data_wait", "peak_memory_bytes")
            if settled[0][name] is not None
        },
    }
    if not train[-1]["loss"] < train[0]["loss"]:
        raise Failed(f"the loss did not fall: {train[0]['loss']:.3f}, at the end {train[-1]['loss']:.3f}")


def _pretraining(day: Day) -> list[str]:
    folders = [f"runs_folder={day.work / 'runs'}", f"data.folder={day.work / 'prepared'}"]
    return ["pretrain", *day.scale.pretrain, *folders]


def efficiency(day: Day) -> None:
    """The paper's table of one attention module, in milliseconds and megabytes."""
    found = day.work / "efficiency"
    day.nystromformer(
        "reproduce", "table=efficiency", f"scale={day.scale.efficiency}", f"device={day.scale.device}",
        f"folder={found}", "again=true",
    )  # fmt: skip
    _note_json(day, "efficiency/*/result.json")


def finetune(day: Day, length: int) -> None:
    """The model of the pretraining on whole film reviews."""
    if not day.model.exists() and not day.dry_run:
        pretrain(day)
    found = day.work / f"finetuned_{length}"
    day.nystromformer(
        "finetune", "task=imdb", f"checkpoint={day.model}", f"model.max_length={length}",
        f"name=imdb_{length}", f"runs_folder={found}", *day.scale.finetune,
    )  # fmt: skip
    _note_json(day, f"{found.name}/*/imdb/summary.json")


def profile(day: Day) -> None:
    """The costliest operations of a step, as the pretraining traced them."""
    folder = day.model.parent / "profile"
    if day.dry_run:
        return
    if not (folder / "operations.txt").exists():
        pretrain(day)
    table = (folder / "operations.txt").read_text(encoding="utf-8")
    day.figures["operations"] = table.splitlines()[:15]


def parts_of(scale: Scale) -> dict[str, Callable[[Day], None]]:
    """In the order in which they are run."""
    found: dict[str, Callable[[Day], None]] = {"tests": tests, "attention": attention}
    if scale.device == "cuda":
        found["kernels"] = kernels
    for compiled in (False, True)[: 1 + scale.compiled]:
        for lengths in scale.lengths:
            name = f"step_{lengths[0]}" + ("_compiled" if compiled else "")
            found[name] = lambda day, lengths=lengths, compiled=compiled: step(day, lengths, compiled)
    for name, words in scale.small_steps.items():
        found[name] = lambda day, name=name, words=words: _benchmark(day, "step", name, *words)
    found |= {"pretrain": pretrain, "profile": profile, "efficiency": efficiency}
    for length in scale.finetune_lengths:
        found[f"finetune_{length}"] = lambda day, length=length: finetune(day, length)
    return found


# --- what is left -------------------------------------------------------------------------------------


def _name(words: Sequence[str]) -> str:
    return next(word.removeprefix("name=") for word in words if word.startswith("name="))


def _note_json(day: Day, pattern: str) -> None:
    """The figures of a part: what its command wrote as JSON."""
    if day.dry_run:
        return
    files = sorted(day.work.glob(pattern))
    if not files:
        raise Failed(f"no {day.work / pattern} was written")
    for file in files:
        day.figures[file.name] = json.loads(file.read_text(encoding="utf-8"))


def keep(day: Day, state: dict[str, Any]) -> None:
    """Write what is to be kept, anew: the work folder has it all, the other may have been emptied."""
    day.out.mkdir(parents=True, exist_ok=True)
    logs = sorted(day.work.glob("*.log"), key=lambda file: file.stat().st_mtime)
    with (day.out / "log.txt").open("wb") as kept:
        for file in logs:
            content = file.read_bytes()
            kept.write(f"===== {file.stem}\n".encode() + content[-LOG_OF_A_PART:] + b"\n")
    _write(day.out / "results.json", json.dumps(state, indent=1))
    pages = sorted(day.work.rglob("*.md"))
    pages = [page for page in pages if not {"model", "prepared"} & {*page.relative_to(day.work).parts}]
    _write(day.out / "pages.md", "\n".join(page.read_text(encoding="utf-8") for page in pages))
    for source, name in (
        (day.model.parent / "curves.png", "curves.png"),
        (day.work / "attention" / f"attention_{day.scale.device}.png", "attention.png"),
        (day.model.parent / "profile/operations.txt", "operations.txt"),
    ):
        if source.exists():
            shutil.copy(source, day.out / name)
    trace = day.model.parent / "profile/trace.json"
    if trace.exists():
        packed = gzip.compress(trace.read_bytes(), 6)
        if len(packed) <= LARGEST:
            (day.out / "trace.json.gz").write_bytes(packed)
    _write(day.out / "summary.md", summary(day, state))


def _write(file: Path, text: str) -> None:
    file.write_text(text[-LARGEST // 4 :], encoding="utf-8")  # a character has at most 4 bytes


def summary(day: Day, state: dict[str, Any]) -> str:
    """What happened, a line a part, with the figures that the targets speak of."""
    lines = [
        f"# First day, scale {day.scale_name}",
        "",
        "| part | | minutes | |",
        "| --- | --- | ---: | --- |",
    ]
    for name in parts_of(day.scale):
        part = state.get(name)
        if part is None:
            lines.append(f"| {name} | not run | | |")
            continue
        told = "; ".join(_headlines(part["figures"])) if part["status"] == "ok" else part["why"]
        lines.append(f"| {name} | {part['status']} | {part['seconds'] / 60:.1f} | {told} |")
    return "\n".join(lines) + "\n"


def _headlines(figures: dict[str, Any]) -> list[str]:
    """The few figures of a part that fit into a line."""
    if "last_loss" in figures:
        found = [f"loss {figures['first_loss']:.2f} → {figures['last_loss']:.2f} in {figures['steps']} steps"]
        found.append("killed and resumed" if figures["killed"] else "resumed")
        found.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
        if "model_flop_utilisation" in figures:
            found.append(f"MFU {figures['model_flop_utilisation']:.1%}")
        return [*found, f"waited for the loader {figures['data_wait']:.1%}"]
    found = []
    for content in figures.values():
        if not isinstance(content, dict):
            continue
        if "skipped" in content:
            found.append(f"{content['tests']} tests, {content['skipped']} of them skipped")
        if "headline" in content:
            found.append(content["headline"])
        if "best" in content:
            score = content["best"]["dev"]["accuracy"]["median"]
            found.append(f"accuracy {score:.1%}, {content['best']['seconds'] / 60:.1f} minutes")
        for length, row in content.get("lengths", {}).items():
            ours = row.get("nystromformer", {}) if isinstance(row, dict) else {}
            if "tokens_per_second" in ours:
                share = ours.get("model_flop_utilisation")
                utilised = f", MFU {share:.1%}" if share else ""
                found.append(f"{length}: {ours['tokens_per_second']:,.0f} tokens/s{utilised}")
            elif "training_median" in ours:
                found.append(f"{length}: {1e3 * ours['training_median']:.2f} ms")
    return found


# --- the call -----------------------------------------------------------------------------------------


def main(words: Sequence[str]) -> int:
    given = {"scale": "gpu", "parts": "", "out": "gpu_day", "work": "gpu_work", "minutes": "9", "again": "",
             "dry_run": ""}  # fmt: skip
    for word in words:
        name, _, value = word.partition("=")
        if name not in given:
            known = ", ".join(f"{name}=…" for name in given)
            print(f"{word} is unknown: write one of {known}", file=sys.stderr)
            return 2
        given[name] = value
    if given["scale"] not in SCALES:
        print(f"scale={given['scale']} is unknown: write scale=gpu or scale=smoke", file=sys.stderr)
        return 2
    scale = SCALES[given["scale"]]
    parts = parts_of(scale)
    asked = given["parts"].split(",") if given["parts"] else list(parts)
    for name in asked:
        if name not in parts:
            print(f"parts={name} is unknown: write some of {','.join(parts)}", file=sys.stderr)
            return 2
    out, work = Path(given["out"]).resolve(), Path(given["work"]).resolve()
    day = Day(scale, given["scale"], out, work, 60 * float(given["minutes"]), bool(given["dry_run"]))
    return run_parts(day, {name: parts[name] for name in asked}, again=bool(given["again"]))


def run_parts(day: Day, parts: dict[str, Callable[[Day], None]], *, again: bool) -> int:
    """Each part that is not finished; 1 where one failed."""
    if day.dry_run:
        for name, part in parts.items():
            print(name)
            part(day)
        return 0
    day.work.mkdir(parents=True, exist_ok=True)
    state_file = day.work / f"state_{day.scale_name}.json"
    state: dict[str, Any] = json.loads(state_file.read_text()) if state_file.exists() else {}
    for name, part in parts.items():
        if state.get(name, {}).get("status") == "ok" and not again:
            print(f"{name}: finished before")
            continue
        print(name, flush=True)
        state[name] = run_part(day, name, part)
        print(f"  {state[name]['status']} {state[name]['why']}", flush=True)
        state_file.write_text(json.dumps(state, indent=1))
        keep(day, state)  # after each, because the next may be the last that there is time for
    keep(day, state)
    print(summary(day, state))
    return int(any(state[name]["status"] != "ok" for name in parts))


def run_part(day: Day, name: str, part: Callable[[Day], None]) -> dict[str, Any]:
    began, day.figures, status, why = time.monotonic(), {}, "ok", ""
    day.deadline = began + day.seconds
    with (day.work / f"{name}.log").open("w", encoding="utf-8") as day.log:
        try:
            part(day)
        except Failed as error:
            status, why = "failed", str(error)
        except (OSError, ValueError, KeyError, IndexError) as error:  # what a command left is not as expected
            status, why = "failed", f"{type(error).__name__}: {error}"
    return {"status": status, "why": why, "seconds": time.monotonic() - began, "figures": day.figures}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

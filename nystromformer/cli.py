"""The command line: `nystromformer COMMAND [KEY=VALUE ...]`.

A new command is one entry in COMMANDS and one `configs/NAME.yaml`. torch and the data libraries are
imported by the command that runs, so that `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pkgutil import resolve_name
from typing import NoReturn

from nystromformer.errors import UserError
from nystromformer.settings.pretrain import PrepareCommandSettings, PrepareSettings, ShardOf
from nystromformer.threads import watch_for_other_work


@dataclass(frozen=True)
class Command:
    """One word after `nystromformer`."""

    summary: str
    function: str
    """Takes the command's own settings, see `settings.compose.SCHEMAS`; imported when it runs."""
    examples: Sequence[str]
    words: Mapping[str, str] = field(default_factory=dict)
    """Bare words that stand for a setting."""
    shared: bool = False
    """Whether the processes of a launcher share its work."""

    def overrides(self, words: Sequence[str]) -> list[str]:
        """The command line's words as KEY=VALUE."""
        return [self.words.get(word, word) for word in words]


def run_prepare(settings: PrepareCommandSettings) -> None:
    """Write the examples, or one machine's share of them, and say where they are and how many."""
    if settings.repair is not None:
        _run_repair(settings.repair)
        return
    from nystromformer.data.prepare import prepare, prepare_shard

    if settings.model.from_source:
        from nystromformer.training.start import settled

        settings = settled(settings)
    if settings.shard is not None:
        for path in prepare_shard(settings.preparation, ShardOf.parse(settings.shard)):
            print(path)
        return
    prepared = prepare(settings.preparation, merge=settings.merge)
    print(prepared.folder)
    for split, counts in prepared.manifest["counts"].items():
        print(f"  {split}: " + ", ".join(f"{value:,} {name}" for name, value in counts.items()))


def _run_repair(folder: str) -> None:
    """Make anew what is damaged in a prepared folder, by the settings in its manifest."""
    from pathlib import Path

    from nystromformer.data.prepare import repair
    from nystromformer.data.storage import MANIFEST, read_manifest
    from nystromformer.settings.identity import read_stored

    manifest = Path(folder) / MANIFEST
    content = read_manifest(Path(folder))["settings"]
    again = "delete the folder and prepare it again"
    made = repair(Path(folder), read_stored(PrepareSettings, content, str(manifest), again))
    print("\n".join(f"{folder}/{name}" for name in made) or f"{folder} is whole")


COMMANDS = {
    "prepare": Command(
        "Corpus to tokenizer to pretraining examples on disk, with a manifest.",
        "nystromformer.cli:run_prepare",
        (
            "nystromformer prepare",
            "nystromformer prepare data=text 'data.files=[corpus/*.txt.gz]' data.workers=8",
            "nystromformer prepare data=mixture 'data.sources=[{kind:wikipedia},{files:[a.txt],weight:2}]'",
            "nystromformer prepare experiment=base_512 shard=3/16",
            "nystromformer prepare experiment=base_512 merge=true",
            "nystromformer prepare repair=prepared/imdb-0123456789ab",
        ),
    ),
    "pretrain": Command(
        "Pretrain with masked language modelling and sentence order; the same command again resumes.",
        "nystromformer.training.pretrain:pretrain",
        (
            "nystromformer pretrain",
            "nystromformer pretrain data=text 'data.files=[my.txt]' name=mine",
            "nystromformer pretrain experiment=small_512 tracking=wandb",
            "nystromformer pretrain debug=smoke",
            "accelerate launch -m nystromformer pretrain experiment=base_512",
        ),
        shared=True,
    ),
    "finetune": Command(
        "Fine-tune on GLUE, film reviews or your own data; the same command again goes on.",
        "nystromformer.tasks.finetune:finetune",
        (
            "nystromformer finetune task=sst2 checkpoint=runs/base_512/model seeds=5",
            "nystromformer finetune task=glue checkpoint=runs/base_512/model data.root=glue submission=true",
            "nystromformer finetune task=mrpc checkpoint=google-bert/bert-base-uncased seeds=3",
            "nystromformer finetune task=imdb checkpoint=runs/base_1024/model model.max_length=1024",
            "nystromformer finetune task=custom checkpoint=runs/demo/model data.train=mine.csv",
            "nystromformer finetune task=embed checkpoint=MY_BERT data.train=notes.jsonl data.pairs=spans",
        ),
        shared=True,
    ),
    "evaluate": Command(
        "A fine-tuned model on a file: predictions and figures; or its rankings of a folder's documents.",
        "nystromformer.tasks.predict:evaluate",
        (
            "nystromformer evaluate checkpoint=runs/finetune/custom/model file=mine.csv",
            "nystromformer evaluate checkpoint=runs/search/embed/model file=scifact retrieval.rerank=ranker",
        ),
        shared=True,
    ),
    "predict": Command(
        "A fine-tuned model on a file of any size, row by row; the same command again goes on.",
        "nystromformer.tasks.predict:predict",
        (
            "nystromformer predict task=embed checkpoint=MY_BERT file=notes.jsonl folder=vectors",
            "nystromformer predict checkpoint=runs/finetune/custom/model file=mine.jsonl folder=predicted",
            "nystromformer predict checkpoint=runs/finetune/custom/model file=mine.csv format=tsv",
        ),
        shared=True,
    ),
    "benchmark": Command(
        "Speed and memory of attention, training, preparation and loader on this machine, beside the peers.",
        "nystromformer.benchmark:benchmark",
        (
            "nystromformer benchmark",
            "nystromformer benchmark 'lengths=[1024,4096]' repeats=9 folder=measured",
            "nystromformer benchmark device=cuda dtype=bfloat16 tokens=65536",
            "nystromformer benchmark what=prepare 'files=[corpus/*.txt]' workers=2",
            "nystromformer benchmark what=loader 'loader_workers=[0,1,2,4]'",
            "nystromformer benchmark what=inference 'lengths=[512,4096]'",
        ),
    ),
    "convert": Command(
        "Other checkpoints to this project's, and to the layout of transformers' own class.",
        "nystromformer.training.convert:convert",
        (
            "nystromformer convert source=uw-madison/nystromformer-512 target=converted",
            "nystromformer convert source=google-bert/bert-base-uncased target=mine neighbours=64 data=imdb",
            "nystromformer convert source=MY_BERT target=mine neighbours=64 data=text 'data.files=[my.txt]' "
            "transfer=true minutes=10",
            "nystromformer convert source=cp-0099.model target=mine tokenizer_path=FacebookAI/roberta-base",
            "nystromformer convert source=runs/demo/model target=for_transformers layout=transformers",
        ),
    ),
    "export": Command(
        "A model as ONNX or torch.export, for every length and padding, checked against PyTorch.",
        "nystromformer.export:export",
        (
            "nystromformer export checkpoint=runs/demo/model target=exported",
            "nystromformer export checkpoint=runs/finetune/sst2/model target=small int8=true",
            "nystromformer export checkpoint=runs/demo/model target=hidden head=encoder format=torch",
        ),
    ),
    "reproduce": Command(
        "Tables and figures, measured: the published figures beside them where there are some.",
        "nystromformer.reproduce:reproduce",
        (
            "nystromformer reproduce all scale=cpu",
            "nystromformer reproduce table=efficiency scale=gpu",
            "nystromformer reproduce figure=landmarks scale=cpu checkpoint=runs/base_512/model",
            "nystromformer reproduce figure=longer",
            "nystromformer reproduce table=glue scale=paper glue_root=glue",
        ),
        {"all": "all=true"},
    ),
}

OVERVIEW = f"""\
nystromformer COMMAND [KEY=VALUE ...]

Pretrain Nyströmformer, a BERT-style encoder whose attention costs O(n).

commands
{chr(10).join(f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())}

options
  --help     this list; after a command, all its settings
  --version  the version
  --cfg job  after a command: print the settings it would run with, and stop
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 2 for the user's mistake, 130 for Ctrl-C."""
    watch_for_other_work()
    try:
        dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except UserError as error:
        # Every process of a distributed run meets the same mistake; one of them reports it.
        if os.environ.get("RANK", "0") == "0":
            for line in str(error).splitlines():
                print(f"nystromformer: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, e.g. `| head`, has seen enough; Python must not try to flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def dispatch(words: list[str]) -> None:
    """Carry out `words`, the command line without the program's name."""
    if not words or words[0] in ("--help", "-h"):
        print(OVERVIEW, end="")
        return
    if words[0] == "--version":
        print(f"nystromformer {version('nystromformer')}")
        return
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(_unknown_command(name))
    options = _parser(name).parse_intermixed_args(rest)
    command = COMMANDS[name]
    overrides = command.overrides(options.overrides)
    if options.help:
        from nystromformer.settings.help import help_of

        print(help_of(name, command.summary, command.examples, overrides))
        return
    from nystromformer.settings.compose import as_yaml, compose

    settings = compose(name, overrides)
    if options.cfg:
        print(as_yaml(settings), end="")
        return
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not command.shared:
        raise UserError(
            f"{name} works in one process, and a launcher started {processes}: start it without one (where "
            "none did, unset WORLD_SIZE)"
        )
    resolve_name(command.function)(settings)


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are this program's: one line, no usage text above it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: write {self.prog} [KEY=VALUE ...] [--cfg job] [--help]")


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(f"nystromformer {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("-h", "--help", action="store_true")
    return parser


def _unknown_command(name: str) -> str:
    from nystromformer.settings.mistakes import nearest

    near = nearest(name, COMMANDS)
    hint = f"did you mean {near}?" if near else f"write one of {', '.join(COMMANDS)}"
    return f"{name!r} is no command: {hint}"

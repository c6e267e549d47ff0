"""A small text for the benchmarks of preparation and loader."""

from pathlib import Path


def corpus(folder: Path, documents: int = 150) -> Path:
    """Documents of 3 to 40 sentences, separated by blank lines."""
    file = folder / "corpus.txt"
    texts = [
        " ".join(f"Story {number} has a part {part} in it." for part in range(3 + 7 * number % 38))
        for number in range(documents)
    ]
    file.write_text("\n\n".join(texts), encoding="utf-8")
    return file

"""The names by which data sets call their splits."""

import re

SPLITS = ("train", "val", "test")
_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "testset"), "test"),
}
_WORD = re.compile("[a-zß-ɏ]+")  # with accents: validé is no word for a split
_BESIDE = {"set", "split", "data", "images", "imgs"}  # as in training_set, test-images


def split_of(name: str) -> str | None:
    """Return 'train', 'val' or 'test' for the name of a directory or split that means it."""
    words = [word for word in _WORD.findall(name.casefold()) if word not in _BESIDE]
    return _WORDS.get(words[0]) if len(words) == 1 else None


def splits_in(name: str) -> set[str]:
    """Return the splits that are named by a word in a file name, such as 'train-00000-of-00001'."""
    return {_WORDS[word] for word in _WORD.findall(name.casefold()) if word in _WORDS}

import pickle

import pytest

from agridistill import errors


def test_a_failure_is_told_in_one_line() -> None:
    error = errors.DataError("a folder\nof folders", "'a\r\nb'", "check  the path")
    assert str(error) == "expected a folder of folders; got 'a b'; check the path"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = [line.split("── ")[-1].split()[0] for line in (errors.__doc__ or "").splitlines() if "Error " in line]
    real = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.AgriDistillError)
    ]
    assert sorted(drawn) == sorted(real)
    assert issubclass(errors.PhotoError, errors.DataError)
    assert issubclass(errors.FetchError, errors.DataError)


def test_a_failure_survives_the_way_back_from_a_worker_process() -> None:
    error = errors.PhotoError("a photo", "a text", "remove it")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is errors.PhotoError
    assert (again.expected, again.got, again.remedy) == ("a photo", "a text", "remove it")


@pytest.mark.parametrize(
    ("word", "known", "count", "hint"),
    [
        ("epoch", ["epochs", "lr"], 1, "did you mean 'epochs'?"),
        ("swin_tny", ["swin_tiny", "swin_small", "vit"], 2, "did you mean 'swin_tiny' or 'swin_small'?"),
        ("x", ["epochs", "lr"], 1, "known: epochs, lr"),
        (
            "x",
            [f"name{number}" for number in range(21)],
            1,
            "known: " + ", ".join(f"name{n}" for n in range(20)) + ", …",
        ),
    ],
)
def test_a_mistyped_word_gets_its_nearest_or_all(word: str, known: list[str], count: int, hint: str) -> None:
    assert errors.nearest(word, known, count=count) == hint

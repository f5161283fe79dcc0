from qmpsnap.model.printable import shell_word, shortened
from tests.each import each


@each(
    ("word", "typed"),
    [
        ("plain", "plain"),
        ("two words", "'two words'"),
        ("", "''"),
        ("a\nb\x1b[31m", r"$'a\x0ab\x1b[31m'"),
        ("it's\t\\ü", r"$'it\'s\x09\\ü'"),
        ("\udcff", r"$'\xff'"),  # a byte that is not UTF-8
    ],
)
def test_a_word_for_a_shell_is_on_one_line(word: str, typed: str) -> None:
    assert shell_word(word) == typed


def test_shortened_leaves_every_path_and_takes_the_middle_out_of_what_is_longer():
    path = "/" + 4095 * "p"
    kept = f"{path} and {path} are different"
    assert shortened(kept) == kept
    word = 300 * "a" + 3_000_000 * "b" + 300 * "c"
    assert shortened(f"no {word} here") == (
        f"no {200 * 'a'}[... 3000200 characters left out ...]{200 * 'c'} here"
    )
    line = "x " * 1_000_000
    assert shortened(line) == "x " * 2048 + "[... 1991808 characters left out ...]" + "x " * 2048
    assert shortened(shortened(line)) == shortened(line)

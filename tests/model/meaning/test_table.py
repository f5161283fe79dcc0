from __future__ import annotations

import pytest

from qmpsnap.errors import NotFound
from qmpsnap.model.meaning.table import MEANINGS, Meaning, explain
from tests.each import each


@each("word", ["io-error", "IO-Error", "io_error", "ioerror", " io error "])
def test_explain_finds_a_word_whatever_its_case_dashes_and_blanks(word):
    meaning, finding = explain(word)
    assert (meaning.word, meaning.kind, finding.kind) == ("io-error", "run state", "finding")
    assert "qmpsnap cont" in meaning.advice


def test_explain_gives_each_kind_that_has_the_word():
    assert [meaning.kind for meaning in explain("paused")] == ["run state", "job state"]


@each("word", ["3", "exit 3", "exit-code 3", "Exit_3"])
def test_explain_finds_an_exit_code(word):
    (meaning,) = explain(word)
    assert meaning == Meaning(
        "3",
        "exit code",
        "Refused: nothing of the machine was changed, and no file, node or job was left behind.",
        "The line that begins with next: says what to do.",
    )


@each(
    ("word", "hint"),
    [
        ("pasued", "similar words: paused, JobPaused, SUSPEND"),
        ("block_job", "BLOCK_JOB_READY, BLOCK_JOB_PENDING"),
        ("zzzz", "qmpsnap explain lists all words"),
        ("", "qmpsnap explain lists all words"),
        ("-", "qmpsnap explain lists all words"),
    ],
)
def test_explain_refuses_an_unknown_word_and_names_similar_ones(word, hint):
    with pytest.raises(NotFound) as refused:
        explain(word)
    assert hint in refused.value.hint


def test_no_word_is_twice_in_a_kind():
    words = [(meaning.kind, meaning.word) for meaning in MEANINGS]
    assert len(words) == len(set(words))


def test_texts_are_sentences_and_their_backticks_are_in_pairs():
    for meaning in MEANINGS:
        assert meaning.text[0].isupper(), meaning
        assert meaning.text.endswith("."), meaning
        assert meaning.advice == "" or meaning.advice.endswith("."), meaning
        assert "  " not in meaning.text + meaning.advice, meaning
        assert (meaning.text + meaning.advice).count("`") % 2 == 0, meaning

"""Tests of problem files: both formats are read whole or refused with file and line; writing is all or nothing."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cocot.errors import DataError
from cocot.tasks import files
from cocot.tasks.files import read_problems, write_problems
from cocot.tasks.problem import Graph, Problem
from cocot.tasks.prosqa import ProsQA

ORIGINAL = {
    "question": "Every lempus is a scrompus. Tom is a lempus. Is Tom a scrompus or yumpus?",
    "steps": ["Tom is a lempus.", "Every lempus is a scrompus."],
    "answer": "Tom is a scrompus.",
    "idx_to_symbol": ["Tom", "Alex", "lempus", "scrompus", "yumpus"],
    "edges": [[0, 2], [2, 3], [1, 4]],
    "root": 0,
    "target": 3,
    "neg_target": 4,
}
"""A problem as the released ProsQA files hold it."""
PROBLEM = Problem(
    ORIGINAL["question"],
    tuple(ORIGINAL["steps"]),
    ORIGINAL["answer"],
    Graph(("Tom", "Alex", "lempus", "scrompus", "yumpus"), ((0, 2), (2, 3), (1, 4)), 0, 3, 4),
)
PLAIN = {"question": "1 + 1?", "steps": ["<<1+1=2>>"], "answer": "2"}
GOOD = json.dumps(PLAIN)
EXAMPLE = {
    "question": "Wumpuses are dull. Max is a wumpus.",
    "query": "True or false: Max is dull.",
    "chain_of_thought": ["Max is a wumpus.", "Wumpuses are dull.", "Max is dull."],
    "answer": "True",
}
"""A problem as ProntoQA's public generator writes it."""


def put(folder: Path, text: str, name: str = "problems.jsonl") -> Path:
    """A file with that text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_original_projects_list_is_read_with_its_graph(tmp_path: Path) -> None:
    """A released file, a JSON list with graph fields, gives problems with graphs; one without them gives none."""
    path = put(tmp_path, json.dumps([ORIGINAL, {**PLAIN, "idx": 7}], indent=1), "prosqa_valid.json")
    assert read_problems(path) == [PROBLEM, Problem("1 + 1?", ("<<1+1=2>>",), "2")]


PUBLISHED = {
    "original GSM8k": (
        '{"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\\n#### 2"}',
        Problem("1 + 1?", ("<<1+1=2>>",), "2"),
    ),
    "original GSM8k, listed": ('[{"question": "q", "answer": "#### 2,000"}]', Problem("q", (), "2000")),
    "iCoT": ("\n1 + 1?||<<1+1=2>> #### 2", Problem("1 + 1?", ("<<1+1=2>>",), "2")),
    "ProntoQA": (
        json.dumps({"example1": {"test_example": EXAMPLE}}, indent=1),
        Problem(
            "Wumpuses are dull. Max is a wumpus. True or false: Max is dull.",
            ("Max is a wumpus. Wumpuses are dull.", "Max is dull."),
            "True",
        ),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_forms_are_read(tmp_path: Path, name: str) -> None:
    """Files of the original projects are read as they are, whatever they are called."""
    text, problem = PUBLISHED[name]
    assert read_problems(put(tmp_path, text, "anything")) == [problem]


def test_our_own_steps_win(tmp_path: Path) -> None:
    """An answer that happens to hold GSM8k's mark is an answer, where steps are given."""
    assert read_problems(put(tmp_path, json.dumps({**PLAIN, "answer": "#### 2"}))) == [
        Problem("1 + 1?", ("<<1+1=2>>",), "#### 2")
    ]


def test_written_problems_are_read_back_the_same(tmp_path: Path) -> None:
    """What is written is read back: graphs, line separators inside a text, letters beyond ASCII, no steps."""
    strange = Problem("Zoë\u2028 or\nnot?", (), "ja")
    problems = [*ProsQA().generate(3, seed=0), PROBLEM, strange]
    path = tmp_path / "new" / "folder" / "problems.jsonl"
    write_problems(path, problems)
    assert read_problems(path) == problems
    assert len(path.read_text(encoding="utf-8").split("\n")) == len(problems) + 1


@pytest.mark.parametrize("text", [json.dumps([ORIGINAL]), json.dumps(ORIGINAL) + "\n\n"])
def test_gzipped_files_of_both_formats_are_read(tmp_path: Path, text: str) -> None:
    """A `.gz` file is read as the file inside it would be; blank lines are nothing."""
    path = tmp_path / "problems.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert read_problems(path) == [PROBLEM]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (f"{GOOD}\n{{oops\n", ":2:", "malformed JSON"),
        (f"{GOOD}\n\n\n17\n", ":4:", "got int, not an object"),
        (f'{GOOD}\n{{"answer": "2"}}', ":2:", "field 'question' is missing"),
        (f'{{"question": "q", "steps": []}}\n{GOOD}', ":1:", "field 'answer' is missing"),
        ('{"question": " ", "answer": "2"}', ":1:", "field 'question' is missing, empty"),
        ('{"question": "q", "answer": 2}', ":1:", "field 'answer' is missing, empty or not text"),
        ('{"question": "q", "answer": "a", "steps": "one"}', ":1:", "'steps' must be a list"),
        ('{"question": "q", "answer": "a", "steps": ["one", 2]}', ":1:", "'steps' must be a list of non-empty texts"),
        ('{"question": "q", "answer": "a", "steps": ["one", ""]}', ":1:", "'steps' must be a list of non-empty texts"),
        (f"[{GOOD},\n {GOOD}\n {GOOD}]", ":3:", "malformed JSON"),
        (f'[{GOOD}, {{"question": "q"}}]', ", item 2:", "field 'answer' is missing"),
        (json.dumps({**ORIGINAL, "edges": [[0]]}), ":1:", "the graph is corrupted"),
        (json.dumps({k: v for k, v in ORIGINAL.items() if k != "neg_target"}), ":1:", "the graph is corrupted"),
        (f"q||#### 2\nq|#### 2\n{GOOD}", ":2:", "not of the form 'question||<<step>> <<step>> #### answer'"),
        ("|| <<1+1=2>> #### 2", ":1:", "field 'question' is missing, empty"),
        ("q||<<1+1=2>> #### ", ":1:", "field 'answer' is missing, empty"),
        ('{"question": "q", "answer": "#### "}', ":1:", "field 'answer' is missing, empty"),
        ('{"e1": {"test_example": {"question": "q"}}}', ", item 1:", "a test_example has question, query and answer"),
        (
            json.dumps({"e": {"test_example": {**EXAMPLE, "chain_of_thought": ["a.", 1]}}}),
            ", item 1:",
            "a list of text",
        ),
        (json.dumps({"e": {"test_example": EXAMPLE}})[:-9], ":1:", "malformed JSON"),
        ("", " holds no problems", "Each problem is an object"),
        ("\n  \n", " holds no problems", "Each problem is an object"),
        ("[]", " holds no problems", "Each problem is an object"),
    ],
)
def test_a_bad_problem_is_named_by_file_and_line(tmp_path: Path, text: str, where: str, what: str) -> None:
    """A problem that cannot be used is refused with its file, its line (of a list: its number) and the reason."""
    path = put(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_problems(path)
    assert f"{path}{where}" in str(caught.value)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


# The Hub


def test_a_hub_data_set_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named, and nothing else is needed before."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hub:openai/gsm8k:main:train takes the package datasets: pip install 'cocot"):
        read_problems("hub:openai/gsm8k:main:train")


@pytest.mark.parametrize("source", ["hub:openai/gsm8k", "hub:", "hub::train", "hub:a:b:c:d"])
def test_a_hub_name_of_another_form_is_refused(source: str) -> None:
    """The message shows both forms."""
    with pytest.raises(DataError, match="is neither hub:NAME:SPLIT nor hub:NAME:CONFIG:SPLIT"):
        read_problems(source)


def test_a_hub_data_set_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have the forms that files have; offline, and for a name that is not there, the message says what to do."""
    pytest.importorskip("datasets", reason="datasets is not installed: pip install 'cocot[hub]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    put(tmp_path, json.dumps({"question": "1 + 1?", "answer": "<<1+1=2>> #### 2"}) + "\n", "train.jsonl")
    assert read_problems(f"hub:{tmp_path}:train") == [Problem("1 + 1?", ("<<1+1=2>>",), "2")]
    assert read_problems(f"hub:{tmp_path}:train[:1]") == read_problems(f"hub:{tmp_path}:train")
    for source in ("hub:openai/gsm8k:main:train", f"hub:{tmp_path}:test"):
        with pytest.raises(DataError, match=rf"cannot load {source}: .* download its files elsewhere and give their"):
            read_problems(source)


def damaged(data: bytes, at: int) -> bytes:
    """The bytes with one of them changed."""
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """A missing file, a folder, bytes that are no text, a cut-off archive, any damaged byte of it: named, refused."""
    packed = gzip.compress((GOOD + "\n").encode() * 3)
    contents = {"latin.jsonl": b'{"question": "\xe9"}', "cut.gz": packed[:-12], "text.gz": GOOD.encode()}
    contents |= {f"damaged{at}.gz": damaged(packed, at) for at in range(10, len(packed))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for path in [tmp_path / "missing.jsonl", tmp_path, *(tmp_path / name for name in contents)]:
        with pytest.raises(DataError, match=f"cannot read problems from {path}"):
            read_problems(path)


def test_a_file_is_replaced_only_once_the_new_one_is_whole(tmp_path: Path) -> None:
    """When making the problems fails half-way, the old file is untouched."""
    path = put(tmp_path, GOOD)

    def failing() -> Iterator[Problem]:
        yield PROBLEM
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_problems(path, failing())
    assert path.read_text() == GOOD


# Chains in the forms of others


CHAINS = {
    "iCoT's multiplication": (
        "1 3 * 2 4||5 5 + 0 2 1 #### 5 7 1",
        Problem("1 3 * 2 4", ("5 5", "+ 0 2 1"), "5 7 1"),
    ),
    "iCoT's multiplication, with running sums": (
        "2 1 7 * 8 5 6||1 7 9 + 0 5 8 8 ( 1 3 2 ) + 0 0 4 #### 1 2 3",
        Problem("2 1 7 * 8 5 6", ("1 7 9", "+ 0 5 8 8 ( 1 3 2 )", "+ 0 0 4"), "1 2 3"),
    ),
    "iCoT's lines of sentences": (
        "How many?||He has 2.5 of them. So 3 more. #### 5.5",
        Problem("How many?", ("He has 2.5 of them.", "So 3 more."), "5.5"),
    ),
    "CODI, marks": (
        '{"question": "How many?", "cot": "<<2+3=5>> <<5*2=10>>", "answer": "10"}',
        Problem("How many?", ("<<2+3=5>>", "<<5*2=10>>"), "10"),
    ),
    "CODI, sentences": (
        '{"question": "How many?", "cot": "He has 2.5 of them. So 3 more.", "answer": "5.5"}',
        Problem("How many?", ("He has 2.5 of them.", "So 3 more."), "5.5"),
    ),
    "CODI, a list": (
        '{"question": "How many?", "cot": ["First.", "Second."], "answer": "B"}',
        Problem("How many?", ("First.", "Second."), "B"),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_chains_of_others_are_read(tmp_path: Path, name: str) -> None:
    """Without `<< >>` marks a chain is its summands or its sentences; it is never lost."""
    text, problem = CHAINS[name]
    assert read_problems(put(tmp_path, text, "anything")) == [problem]


LOST = ["chain_of_thought", "rationale", "rationales", "reasoning", "reasoning_content", "chain", "gold_chain"]
LOST += ["thought", "thoughts", "thinking", "solution", "solutions", "explanation", "explanations", "derivation"]
LOST += ["proof", "working", "scratchpad", "chainOfThought", "chain-of-thought", "human_explanation", "Rationale"]
LOST += ["reasoning_steps", "COT", "justification", "proofs", "intermediate steps"]


@pytest.mark.parametrize("field", LOST)
@pytest.mark.parametrize("value", ["First this. Then that.", ["this", "that"]])
def test_a_chain_that_would_be_lost_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    """A field that looks like reasoning is named; with steps beside it, it is a remark that is left out."""
    item = {"question": "q", "answer": "#### 2", field: value}
    with pytest.raises(DataError, match=rf"problems\.jsonl:1: field '{field}' looks like the chain of thought"):
        read_problems(put(tmp_path, json.dumps(item)))
    with pytest.raises(DataError, match=f"field '{field}' looks like"):
        read_problems(put(tmp_path, json.dumps({**item, "steps": []})))
    assert read_problems(put(tmp_path, json.dumps({**item, "steps": ["s"]}))) == [Problem("q", ("s",), "#### 2")]


def test_fields_that_are_no_chain_are_left_out(tmp_path: Path) -> None:
    """Numbers and names of other things are no reasoning."""
    item = {
        "question": "q",
        "answer": "2",
        "num_steps": 3,
        "id": "x",
        "subject": "algebra",
        "rationale": "",
        "level": 1,
    }
    assert read_problems(put(tmp_path, json.dumps(item))) == [Problem("q", (), "2")]


@pytest.mark.parametrize("cot", [7, [1], [""], {"a": "b"}])
def test_a_chain_of_another_type_is_refused(tmp_path: Path, cot: object) -> None:
    """CODI's field is a text or a list of texts."""
    with pytest.raises(DataError, match=r":1: field 'cot' must be a text or a list of non-empty texts"):
        read_problems(put(tmp_path, json.dumps({"question": "q", "answer": "2", "cot": cot})))


# What other systems put into files


FORMS = {
    "lines of JSON": f"{GOOD}\n{GOOD}\n",
    "a list": json.dumps([PLAIN, PLAIN], indent=1),
    "iCoT": "1 + 1?||<<1+1=2>> #### 2\n1 + 1?||<<1+1=2>> #### 2\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packs", [False, True])
def test_byte_order_marks_and_line_ends_are_no_text(
    tmp_path: Path, form: str, end: str, begin: bytes, packs: bool
) -> None:
    """A file of Windows, of an old Mac, with a byte-order mark: the same problems in every form, packed or not."""
    raw = begin + FORMS[form].replace("\n", end).encode()
    path = tmp_path / ("problems.gz" if packs else "problems.txt")
    path.write_bytes(gzip.compress(raw) if packs else raw)
    assert read_problems(path) == [Problem("1 + 1?", ("<<1+1=2>>",), "2")] * 2


def test_a_line_is_counted_once_whatever_its_end(tmp_path: Path) -> None:
    """The number of a bad line is that of an editor."""
    path = tmp_path / "windows.jsonl"
    path.write_bytes(f"{GOOD}\r\n{{oops\r\n".encode())
    with pytest.raises(DataError, match=r"windows\.jsonl:2: malformed JSON"):
        read_problems(path)


def test_a_packed_file_has_a_limit(tmp_path: Path) -> None:
    """A few hundred kilobytes that unpack without end are refused before the memory is full; GSM8k-Aug fits."""
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(files._MOST_BYTES // 2**20 + 1):
            file.write(bytes(2**20))
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz unpacks to more than 512 MiB"):
        read_problems(path)
    assert files._MOST_BYTES > 385_620 * 1000  # problems, each of a thousand bytes


def test_problems_are_set_aside_by_their_questions() -> None:
    """By the seed alone; a question that stands twice is on one side; at most so many, at least one on each side."""
    problems = [Problem(f"q {index % 40}", (), str(index)) for index in range(60)]
    left, aside = files.set_aside(problems, 0.1, 200, seed=3)
    assert len({problem.question for problem in aside}) == 4
    assert not {problem.question for problem in left} & {problem.question for problem in aside}
    assert sorted([*left, *aside], key=lambda problem: int(problem.answer)) == problems
    assert files.set_aside(problems, 0.1, 200, seed=3) == (left, aside)
    assert files.set_aside(problems, 0.1, 200, seed=4) != (left, aside)
    assert len({problem.question for problem in files.set_aside(problems, 0.5, 7, seed=3)[1]}) == 7
    assert [len(side) for side in files.set_aside([Problem("a", (), "1"), Problem("b", (), "2")], 0.9, 9, 0)] == [1, 1]
    with pytest.raises(ValueError, match="holds one question alone"):
        files.set_aside([Problem("a b", (), "1"), Problem("a  b", (), "2")], 0.5, 9, 0)

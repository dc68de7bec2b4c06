"""Published benchmarks from a folder: what is read, how it is judged, what is said of a gap."""

from __future__ import annotations

import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from kvmmu.errors import KVMMUError
from kvmmu.evals.loaders import metrics
from kvmmu.evals.loaders.base import LOADERS, Document, MissingDataError
from kvmmu.evals.loaders.gsm8k import GSM8K
from kvmmu.evals.loaders.humaneval import HumanEval, write_samples
from kvmmu.evals.loaders.lambada import LAMBADA
from kvmmu.evals.loaders.longbench import DATASETS, LongBench
from kvmmu.evals.loaders.ruler import RULER

TASKS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tasks"
needs_tasks = pytest.mark.skipif(not TASKS.is_dir(), reason="GSM8K and HumanEval are not here")


def write(path, *rows):
    """Write rows of JSON, one a line; compressed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))


# ------------------------------------------------------------------------------------- all of them
def test_five_benchmarks_are_registered():
    assert LOADERS.names() == ["gsm8k", "humaneval", "lambada", "longbench", "ruler"]


@pytest.mark.parametrize("name", LOADERS.names())
def test_a_missing_file_is_named_with_its_source_and_its_place(name, tmp_path):
    made = LOADERS.get(name)(tmp_path)
    with pytest.raises(MissingDataError) as caught:
        list(made.documents())
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, KVMMUError)
    for part in (str(tmp_path), "https://", ".jsonl" if name != "lambada" else ".txt"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_id": 1}\n', "line 1 .* must be an object with task_id, prompt"),
        ("[]\n", "line 1 .* must be an object"),
        ("\n{oh}\n", "line 2 .* must be JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, text, message):
    (tmp_path / "HumanEval.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        list(HumanEval(tmp_path).documents())


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_damaged_archive_is_named(tmp_path, ending):
    path = tmp_path / f"HumanEval.jsonl{ending}"
    write(path, {"task_id": "a", "prompt": "b" * 1000, "canonical_solution": "c"})
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="must be UTF-8 text, whole"):
        list(HumanEval(tmp_path).documents())


def test_a_document_needs_a_prompt_and_room():
    with pytest.raises(ValueError, match="prompt of document 'a' must not be empty"):
        Document("a", "", (), "m", 1)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        Document("a", "b", (), "m", 0)


# ------------------------------------------------------------------------------------------- GSM8K
@needs_tasks
def test_gsm8k_asks_every_problem_after_eight_solved_ones():
    made = list(GSM8K(TASKS).documents())
    assert len(made) == 1319
    first = made[0]
    assert first.references == ("18",)
    assert first.prompt.count("Question: ") == 9
    assert first.prompt.count("#### ") == 8
    assert first.prompt.startswith("Question: Natalia sold clips")
    assert first.prompt.endswith("at the farmers' market?\nAnswer:")
    assert {document.prompt.count("#### ") for document in made} == {8}


@needs_tasks
def test_gsm8k_finds_its_own_solutions_right():
    loader = GSM8K(TASKS, num_shots=0)
    with lzma.open(TASKS / "gsm8k_test.jsonl.xz", "rt", encoding="utf-8") as file:
        answers = [json.loads(line)["answer"] for line in file]
    documents = list(loader.documents())
    assert all(loader.score(d, text) == 1 for d, text in zip(documents, answers, strict=True))
    wrong = sum(loader.score(d, text) for d, text in zip(documents, answers[1:], strict=False))
    assert wrong < 100  # another problem's number is seldom the right one


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("so it is 5. #### 1,000", 1),
        ("#### 1000.0\n", 1),
        ("####$1000", 1),
        ("#### 1000 and #### 7", 1),
        ("#### 7 #### 1000", 0),
        ("1000", 0),
        ("#### -1000", 0),
        ("#### none", 0),
    ],
)
def test_gsm8k_compares_numbers(tmp_path, text, score):
    document = Document("0", "q", ("1000",), "exact_number", 9)
    assert GSM8K(tmp_path).score(document, text) == score


def test_gsm8k_takes_the_users_solved_problems(tmp_path):
    write(tmp_path / "test.jsonl.gz", {"question": "Q?", "answer": "so\n#### 2"})
    write(
        tmp_path / "mine.jsonl", *[{"question": f"{i}?", "answer": f"#### {i}"} for i in range(3)]
    )
    loader = GSM8K(tmp_path, num_shots=2, shots_file=tmp_path / "mine.jsonl")
    (only,) = loader.documents()
    assert only.prompt == (
        "Question: 0?\nAnswer: #### 0\n\nQuestion: 1?\nAnswer: #### 1\n\nQuestion: Q?\nAnswer:"
    )
    with pytest.raises(ValueError, match="must hold 4 solved problems, got 3"):
        list(replace(loader, num_shots=4).documents())
    with pytest.raises(MissingDataError, match=r"none\.jsonl"):
        list(replace(loader, shots_file=tmp_path / "none.jsonl").documents())
    with pytest.raises(ValueError, match="num_shots must be at least 0"):
        list(replace(loader, num_shots=-1).documents())


# --------------------------------------------------------------------------------------- HumanEval
@needs_tasks
def test_humaneval_writes_what_the_official_tool_reads(tmp_path):
    loader = HumanEval(TASKS)
    made = list(loader.documents())
    assert len(made) == 164
    assert made[0].id == "HumanEval/0"
    assert loader.score(made[0], made[0].references[0]) is None  # nothing is executed
    file = tmp_path / "samples.jsonl"
    assert write_samples(file, ((d.id, d.references[0]) for d in made)) == 164
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"task_id": "HumanEval/0", "completion": made[0].references[0]}
    own = [s for d in made for s in d.stop if s in d.references[0]]
    assert not own  # no solution is cut by a stop


# ------------------------------------------------------------------------------------------- RULER
def test_ruler_reads_a_folder_a_task_and_scores_by_its_kind(tmp_path):
    row = {"index": 7, "input": "Text. What?", "outputs": ["123", "Abc"], "length": 50}
    write(tmp_path / "niah_single_1" / "validation.jsonl", row)
    write(tmp_path / "qa_1" / "validation.jsonl.gz", row | {"answer_prefix": " Answer:"})
    loader = RULER(tmp_path)
    niah, qa = loader.documents()
    assert (niah.id, niah.max_new_tokens, niah.task) == ("niah_single_1/7", 128, "niah_single_1")
    assert (qa.prompt, qa.max_new_tokens) == ("Text. What? Answer:", 32)
    assert loader.score(niah, "it is abc.") == 0.5
    assert loader.score(niah, "123 and ABC") == 1
    assert loader.score(qa, "it is abc.") == 1
    assert loader.score(qa, "neither") == 0
    assert [d.task for d in replace(loader, tasks=("qa_1",)).documents()] == ["qa_1"]
    assert [d.task for d in RULER(tmp_path / "qa_1").documents()] == ["qa_1"]
    with pytest.raises(MissingDataError):
        list(replace(loader, tasks=("vt",)).documents())


def test_ruler_says_which_folder_names_no_task(tmp_path):
    write(tmp_path / "other" / "validation.jsonl", {"input": "a", "outputs": ["b"]})
    with pytest.raises(ValueError, match=r"named as its task .*'other'"):
        list(RULER(tmp_path).documents())


# ----------------------------------------------------------------------------------------- LAMBADA
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_lambada_parts_the_last_word(tmp_path, form):
    passages = ["he opened the old door", "“yes , ” she said"]
    if form == "txt":
        path = tmp_path / "lambada_test_plain_text.txt"
        path.write_text("\n".join(passages) + "\n\n", encoding="utf-8")
    else:
        write(tmp_path / "lambada_test.jsonl.gz", *[{"text": text} for text in passages])
    loader = LAMBADA(tmp_path)
    first, second = loader.documents()
    assert (first.prompt, first.references, first.mode) == (
        "he opened the old",
        (" door",),
        "continue",
    )
    assert second.references == (" said",)
    assert loader.score(first, " door and") == 1
    assert loader.score(first, " doors") == 0


def test_lambada_refuses_a_single_word(tmp_path):
    (tmp_path / "lambada_test_plain_text.txt").write_text("alone\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must have two words, got 'alone'"):
        list(LAMBADA(tmp_path).documents())


# --------------------------------------------------------------------------------------- LongBench
def longbench(tmp_path, name, **changes):
    """Write one row of a data set and return its loader and document."""
    row = {
        "input": "Who {context}?",
        "context": "Long {input} text.",
        "answers": ["the red fox", "Fox"],
        "length": 4,
        "dataset": name,
        "language": "en",
        "all_classes": None,
        "_id": "x1",
    }
    write(tmp_path / "data" / f"{name}.jsonl", row | changes)
    loader = LongBench(tmp_path, datasets=(name,))
    (only,) = loader.documents()
    return loader, only


def test_longbench_fills_its_prompt_and_leaves_other_braces(tmp_path):
    _, document = longbench(tmp_path, "hotpotqa")
    assert document.prompt == "Long {input} text.\n\nQuestion: Who {context}?\nAnswer:"
    assert (document.id, document.max_new_tokens, document.metric) == ("x1", 32, "qa_f1")


def test_longbench_takes_the_published_prompts_where_they_are(tmp_path):
    (tmp_path / "config").mkdir()
    file = tmp_path / "config" / "dataset2prompt.json"
    file.write_text(json.dumps({"hotpotqa": "C: {context} I: {input} {x}"}), encoding="utf-8")
    _, document = longbench(tmp_path, "hotpotqa_e")
    assert document.prompt == "C: Long {input} text. I: Who {context}? {x}"
    file.write_text("[1", encoding="utf-8")
    with pytest.raises(ValueError, match="must be a JSON object"):
        list(LongBench(tmp_path).documents())


@pytest.mark.parametrize("name", list(DATASETS))
def test_longbench_gives_the_reference_one_and_nonsense_zero(tmp_path, name):
    answers = {"passage_count": ["12"], "passage_retrieval_en": ["Paragraph 12"]}
    answers |= {"passage_retrieval_zh": ["段落12"], "lsht": ["军事"], "trec": ["Human"]}
    changes = {"answers": answers.get(name, ["红 fox 跑 home"])}
    if name in ("trec", "lsht"):
        changes["all_classes"] = [*changes["answers"], "other"]
    loader, document = longbench(tmp_path, name, **changes)
    assert loader.score(document, changes["answers"][0]) == 1
    assert loader.score(document, "zzz") == 0
    assert loader.score(document, "") == 0


def test_longbench_takes_the_best_reference_and_the_first_line(tmp_path):
    loader, document = longbench(tmp_path, "triviaqa")
    assert loader.score(document, "\nFox!\nthe red fox and more") == 1
    assert loader.score(document, "a fox that ran") == pytest.approx(0.5)  # of 1 and 3 words


def test_longbench_counts_with_numbers_and_finds_the_right_one(tmp_path):
    loader, count = longbench(tmp_path, "passage_count", answers=["12"])
    assert loader.score(count, "There are 12, or 13.") == 0.5
    loader, found = longbench(tmp_path, "passage_retrieval_en", answers=["Paragraph 3"])
    assert loader.score(found, " 3, not 4") == 0.5
    assert loader.score(found, "Paragraph 30") == 0


def test_longbench_names_an_unknown_data_set_and_a_missing_one(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'hotpotqa'"):
        list(LongBench(tmp_path, datasets=("hotpotq",)).documents())
    longbench(tmp_path, "trec", all_classes=["a"])
    with pytest.raises(MissingDataError, match="LongBench's lcc"):
        list(LongBench(tmp_path, datasets=("lcc",)).documents())
    assert [d.task for d in LongBench(tmp_path).documents()] == ["trec"]


# ----------------------------------------------------------------------------------------- metrics
def test_words_lose_case_punctuation_and_articles():
    assert metrics.words("The  Red-fox, an “x”!") == ["redfox", "“x”"]
    assert metrics.words("红狐，跑。a b", is_chinese=True) == ["红", "狐", "跑", "a", "b"]


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "rouge"),
    [
        ("a b c d", "a b c d", 1, 1),
        ("b a", "a b", 1, 0.5),
        ("a a b", "a b b", 2 / 3, 2 / 3),
        ("a x b y", "a b", 4 / 6, 4 / 6),
        ("x", "y", 0, 0),
        ("", "y", 0, 0),
    ],
)
def test_f1_and_rouge_by_hand(answer, reference, f1, rouge):
    assert metrics.token_f1(answer.split(), reference.split()) == pytest.approx(f1)
    assert metrics.rouge_l(answer.split(), reference.split()) == pytest.approx(rouge)


def test_edit_similarity_by_hand():
    assert metrics.edit_similarity("abcd", "abxd") == 0.75  # one deletion, one insertion of eight
    assert metrics.edit_similarity("return x", "return y") == 0.88  # 14 / 16 in hundredths
    assert metrics.edit_similarity("", "") == 0


def test_a_label_that_is_part_of_the_true_one_does_not_count():
    classes = ["Human", "Human group", "Other"]
    assert metrics.class_match("It is: Human group", "Human group", classes) == 1
    assert metrics.class_match("Human group, Other", "Human group", classes) == 0.5
    assert metrics.class_match("Human group", "Human", classes) == 0.5
    assert metrics.class_match("Other", "Human", classes) == 0


def test_numbers_share_the_score():
    assert metrics.number_share("Paragraph 3 or 4 or 3", "3") == pytest.approx(2 / 3)
    assert metrics.number_share("Paragraph 33", "3") == 0
    assert metrics.number_share("none", "3") == 0


def test_a_code_answer_is_its_first_line_of_code(tmp_path):
    loader, document = longbench(tmp_path, "lcc", answers=["return total"])
    assert loader.score(document, "\n# a comment\n```\nreturn total\nprint(1)") == 1
    assert loader.score(document, "// nothing else") == 0

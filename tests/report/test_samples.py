from fake_runs import sample_rows, write_jsonl, write_run

from alignment.report.read import read_run
from alignment.report.samples import Pair, before_after, messages, pick
from alignment.report.text import visible


def pairs(*gains):
    return [Pair("", gain, messages(str(gain)), None, None) for gain in gains]


def picked(*gains):
    return [(pair.why, pair.gain) for pair in pick(pairs(*gains))]


def test_gains_median_and_losses_are_picked_in_order():
    gains = [float(gain) for gain in range(-10, 11)]
    chosen = picked(*gains)
    assert [gain for _, gain in chosen] == [10, 9, 8, 1, 0, -8, -9, -10]
    assert [why for why, _ in chosen] == ["largest gain"] * 3 + ["median"] * 2 + ["largest loss"] * 3


def test_nothing_is_called_what_it_is_not():
    assert picked(0.3, 0.2, 0.1) == [("largest gain", 0.3), ("median", 0.2), ("smallest gain", 0.1)]
    assert picked(-0.1, -0.2, -0.3) == [("smallest loss", -0.1), ("median", -0.2), ("largest loss", -0.3)]
    assert picked(0.0) == [("no gain", 0.0)]


def test_every_pair_is_shown_once():
    for num in range(1, 30):
        chosen = pick(pairs(*[float(i) for i in range(num)]))
        assert len({pair.gain for pair in chosen}) == len(chosen)


def test_samples_without_a_reward_are_shown_without_a_rank():
    assert picked(None, None) == [("sample", None), ("sample", None)]


def test_prompts_are_matched_by_id_and_sample(tmp_path):
    folder = write_run(tmp_path / "run")
    later = sample_rows(100, seed=1)
    later[0]["prompt_id"] = "another"
    write_jsonl(folder / "samples" / "step=000100.jsonl", list(reversed(later)))
    found = before_after(read_run(folder, name="run"), "run")
    assert found.num_pairs == 23
    assert all(pair.before.prompt == pair.after.prompt for pair in found.pairs)


def test_one_evaluation_alone_is_shown_without_a_comparison(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "samples" / "step=000000.jsonl").unlink()
    found = before_after(read_run(folder, name="run"), "run")
    assert (found.first_step, found.last_step) == (None, 100)
    assert found.pairs[0].before is None


def test_text_of_any_kind_is_visible():
    assert visible("\ud800") == "⟨D800⟩"
    assert visible("\x7f") == "⟨7F⟩"
    assert visible("日本語 🙂\n") == "日本語 🙂\n"

import json
import math

import pytest

from benches.record import RESULTS, SCHEMA, Record, summary


def test_percentiles_are_samples_that_were_measured():
    samples = [float(value) for value in range(1, 1002)]
    row = summary(samples, deadline=1000.0)
    assert row["n"] == 1001
    assert (row["p50"], row["p90"], row["p99"], row["p99.9"]) == (501.0, 901.0, 991.0, 1000.0)
    assert row["max"] == 1001.0
    assert row["misses"] == 1


def test_one_sample_is_every_percentile():
    row = summary([2.5])
    assert {row[key] for key in ("p50", "p90", "p99", "p99.9", "max", "mean")} == {2.5}
    assert "misses" not in row


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_samples_that_cannot_be_summed_up_are_refused(samples):
    with pytest.raises(ValueError, match="samples"):
        summary(samples)


def test_record_names_device_versions_and_commit(tmp_path):
    record = Record("stream", deadline_ms=13.333)
    record.add({"model": "tiny"}, {"encode": [1.0, 20.0]}, values={"rtf": 0.1}, keep_samples=True)
    path = record.write(tmp_path)
    content = json.loads(path.read_text())
    assert path.name.startswith("stream-")
    assert content["schema"] == SCHEMA
    assert content["device"]["cpu"]
    assert content["versions"]["torch"]
    assert content["versions"]["encodec_rt"]
    assert set(content["git"]) == {"commit", "dirty"}
    (case,) = content["cases"]
    assert case["ms"]["encode"]["misses"] == 1
    assert case["ms"]["encode"]["samples"] == [1.0, 20.0]
    assert case["values"] == {"rtf": 0.1}


def test_an_earlier_record_is_never_replaced(tmp_path):
    record = Record("stream")
    record.write(tmp_path)
    with pytest.raises(FileExistsError):
        record.write(tmp_path)


def test_infinite_values_become_null(tmp_path):
    record = Record("ratio")
    record.add({}, values={"snr_db": math.inf, "list": [math.nan, 1.0]})
    content = json.loads(record.write(tmp_path).read_text())
    assert content["cases"][0]["values"] == {"snr_db": None, "list": [None, 1.0]}


def test_table_has_a_line_per_timing():
    record = Record("stream", deadline_ms=1.0)
    record.add({"start": "exact"}, {"encode": [0.5], "decode": [2.0]}, values={"rtf": 0.25})
    lines = record.table().splitlines()
    assert len(lines) == 3
    assert "misses 1" in lines[1]
    assert "rtf 0.25" in lines[2]


def test_every_committed_result_has_the_schema():
    for path in RESULTS.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["schema"] == SCHEMA, path.name
        assert content["cases"], path.name

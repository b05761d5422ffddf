"""Which GPUs each of several workers of one host gets."""

from __future__ import annotations

import pytest

from synthgen.errors import BadInput
from tasks.replicas import gpu_groups


def test_without_a_word_about_gpus_they_are_counted_from_nought() -> None:
    assert gpu_groups(2, 2, None, {}) == ["0,1", "2,3"]


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_replicas_share_the_gpus_that_this_process_was_given(variable: str) -> None:
    assert gpu_groups(2, 1, None, {variable: "4,5"}) == ["4", "5"]
    assert gpu_groups(1, 2, None, {variable: "GPU-a,GPU-b,GPU-c"}) == ["GPU-a,GPU-b"]


def test_gpus_that_are_named_count_before_those_that_were_given() -> None:
    assert gpu_groups(2, 1, "6,7", {"CUDA_VISIBLE_DEVICES": "4,5"}) == ["6", "7"]


def test_an_empty_variable_says_nothing() -> None:
    assert gpu_groups(1, 1, None, {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "3"}) == ["3"]


def test_fewer_gpus_than_the_replicas_need_are_told_with_who_named_them() -> None:
    with pytest.raises(BadInput, match=r"2 replicas of 2 GPUs need 4, but CUDA_VISIBLE_DEVICES names 2\."):
        gpu_groups(2, 2, None, {"CUDA_VISIBLE_DEVICES": "4,5"})
    with pytest.raises(BadInput, match=r"but --gpus names 3\."):
        gpu_groups(2, 2, "0,1,2", {})


def test_gpus_that_no_replica_would_get_are_refused() -> None:
    with pytest.raises(BadInput, match=r"--gpus names 4 GPUs, but 2 replicas of 1 take 2: no replica gets 2,3; leave"):
        gpu_groups(2, 1, "0,1,2,3", {})

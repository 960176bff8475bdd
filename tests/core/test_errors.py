"""Errors reach the user whole, also from worker processes."""

import pickle

from samnn.errors import Problems


def test_problems_list_all_and_cross_a_process_boundary():
    problems = Problems("folder: 2 problems.", ["a.nii.gz: cut short", "b.nii.gz: missing"])
    again = pickle.loads(pickle.dumps(problems))
    assert str(again) == "folder: 2 problems.\n  - a.nii.gz: cut short\n  - b.nii.gz: missing"
    assert again.problems == problems.problems

"""The doctor: reads every byte of a shard set and says what is wrong with it, and where.

`examine` returns records; `pipelines.doctor` draws them. A damaged piece never stops the examination.
"""

from shards.doctor.examination import ExamineConfig, examine
from shards.doctor.findings import Examination, Face, Finding, LabelCounts, Overlap, SplitRecord, Twin

__all__ = [
    "Examination",
    "ExamineConfig",
    "Face",
    "Finding",
    "LabelCounts",
    "Overlap",
    "SplitRecord",
    "Twin",
    "examine",
]

"""What is on disk: raw data sets -> aligned faces -> tar shards -> batches; and the rendered default faces.

Reading order: labels, keyed, manifest, index, build, stream, transforms; then sources, align, render, doctor.
Nothing here imports pretrain, finetune or pipelines.
"""

"""What is on disk: raw data sets -> aligned faces -> tar shards -> batches; and the rendered default data.

Reading order: labels, keyed, manifest, index, build, draws, stream, transforms; of clips frames, windows,
planes, clips; then sources, align, render, doctor.
Nothing here imports pretrain, finetune or pipelines.
"""

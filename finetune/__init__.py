"""What is learned from the prior: metrics, losses and models of the affect tasks.

Imports shards and pretrain; never pipelines.
"""

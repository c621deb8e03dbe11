"""Tests of pipelines/rescoring."""

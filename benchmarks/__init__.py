"""Benchmarks: every figure is a ratio to a loop written by hand on the raw driver, measured in the same run.

outbox bench NAME ──▶ a module of this package ──▶ Run ──▶ results/NAME.json ──▶ report, plots, bars
"""

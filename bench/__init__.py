"""Workloads and measurement, and the worker that runs them on a device."""

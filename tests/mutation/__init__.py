"""Faults put into the code on purpose: how many the tests notice."""

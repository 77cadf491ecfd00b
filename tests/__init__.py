"""The tests. Folders share what `tests.common` and `tests.servers` hold."""

"""The ``mlaas`` command: thin faces of the workflows."""

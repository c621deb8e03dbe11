"""Airflow for tests in this process: a home of its own, no database, and Python's logging left as it was."""

import atexit
import logging
import os
import shutil
import tempfile

os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="perennial-airflow-")
atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
_handlers = list(logging.root.handlers)
_level = logging.root.level

import airflow.sdk  # noqa: E402, F401 - its first import sets up logging

logging.root.handlers[:] = _handlers
logging.root.level = _level

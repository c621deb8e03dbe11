"""`make demo`: history replayed as time-lapse through the real Airflow, MLflow, Triton and gateway."""

"""Estimators: models with ``fit`` and ``predict`` (LightGBM, XGBoost, scikit-learn) beside torch's.

``families`` builds one from parameters, ``design`` lays a case's tensors out as the matrix that it reads, ``fitting``
fits it, ``onnx`` turns it into a graph with the case's signature. Training and export stand above.
"""

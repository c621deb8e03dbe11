"""What Airflow is told of this package where it is installed: connection types with their forms, links, configuration.

Airflow finds it by the entry point ``apache_airflow_provider``, that is of an installed package only.
"""

from __future__ import annotations

from typing import Any

HOOKS = "perennial.airflow.hooks"
TEXT = {"type": ["string", "null"]}


def get_provider_info() -> dict[str, Any]:
    """The provider's description, in Airflow's form; nothing but data, as every command of Airflow asks for it."""
    return {
        "package-name": "perennial",
        "name": "Perennial",
        "description": "Continuous training: operators, connections and DAGs of the loop",
        "connection-types": [_triton(), _mlflow(), _ledger()],
        "asset-uris": [
            {
                "schemes": ["perennial"],
                "handler": None,
                "to_openlineage_converter": "perennial.airflow.lineage.to_openlineage",
            }
        ],
        "extra-links": ["perennial.airflow.links.Link"],
        "config": {
            "perennial": {
                "description": "Perennial's provider",
                "options": {
                    "guard_hosts": {
                        "description": (
                            "Let the api-server answer to its own names only, and to no page of another origin that "
                            "writes (PERENNIAL_ALLOWED_HOSTS names further ones). For an Airflow in which everybody "
                            "is an admin."
                        ),
                        "version_added": "0.2.0",
                        "type": "boolean",
                        "example": None,
                        "default": "False",
                    }
                },
            }
        },
    }


def _triton() -> dict[str, Any]:
    return {
        "connection-type": "perennial_triton",
        "hook-class-name": f"{HOOKS}.TritonHook",
        "hook-name": "Triton (Perennial)",
        "conn-fields": {
            # Airflow masks a field of this name.
            "private_key": {
                "label": "Client's key and certificates",
                "schema": {**TEXT, "format": "multiline"},
                "description": "PEM: a private key, its certificate, and the authority of Triton's own. "
                "Empty: a plain channel.",
            }
        },
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "login", "password", "extra"],
            "relabeling": {"port": "gRPC port"},
            "placeholders": {"host": "triton.example.org", "port": "8001"},
        },
    }


def _mlflow() -> dict[str, Any]:
    return {
        "connection-type": "perennial_mlflow",
        "hook-class-name": f"{HOOKS}.MlflowHook",
        "hook-name": "MLflow (Perennial)",
        "ui-field-behaviour": {
            "hidden-fields": ["extra"],
            "relabeling": {"host": "Host or URL", "schema": "Scheme"},
            "placeholders": {"host": "https://mlflow.example.org/path", "schema": "https", "port": "5000"},
        },
    }


def _ledger() -> dict[str, Any]:
    return {
        "connection-type": "perennial_ledger",
        "hook-class-name": f"{HOOKS}.LedgerHook",
        "hook-name": "Ledger (Perennial, PostgreSQL)",
        "conn-fields": {
            "sslmode": {
                "label": "sslmode",
                "schema": {
                    **TEXT,
                    "enum": [None, "disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
                },
                "description": "libpq's: how TLS is asked for.",
            },
            "sslrootcert": {
                "label": "sslrootcert",
                "schema": TEXT,
                "description": "The file of the authority that the server's certificate must come from.",
            },
        },
        "ui-field-behaviour": {
            "hidden-fields": ["extra"],
            "relabeling": {"schema": "Database"},
            "placeholders": {"host": "db.example.org", "port": "5432", "schema": "ledger"},
        },
    }

-- MLflow and Optuna each keep a table named alembic_version: they cannot share one database.
CREATE DATABASE mlflow;
CREATE DATABASE optuna;

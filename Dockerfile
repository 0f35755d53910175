# The image of the project: `docker build --tag lever-mlflow .` makes it, and docs/container.md says how it is used.

ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

# Where pip finds torch and torchvision. The default is the build for a CPU; the build for CUDA 13 is on PyPI:
# --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# git names the commit in each run; curl and make are those of the pages in docs/
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl git make \
    && rm -rf /var/lib/apt/lists/*

# A user without privileges, who owns the project, the cache and the environment.
ARG USER_ID=1000
RUN groupadd --gid "${USER_ID}" lever \
    && useradd --uid "${USER_ID}" --gid "${USER_ID}" --create-home lever \
    && mkdir -p /cache /project /venv \
    && chown lever:lever /cache /project /venv
USER ${USER_ID}:${USER_ID}
WORKDIR /project

ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    LEVER_MLFLOW_CACHE=/cache

# The dependencies come first, so that a change of the code does not install them again. torch is installed from its index at the
# exact version of conda.yaml; the other packages are then constrained to those versions.
COPY --chown=lever:lever conda.yaml ./
RUN python -m venv /venv \
    && sed -n 's/^ *- \([a-z0-9-]*==.*\)/\1/p' conda.yaml > /venv/constraints.txt \
    && grep -E '^torch(vision)?==' /venv/constraints.txt > /venv/torch.txt \
    && pip install --no-cache-dir --index-url "${TORCH_INDEX}" --requirement /venv/torch.txt \
    && pip install --no-cache-dir --requirement /venv/constraints.txt

COPY --chown=lever:lever pyproject.toml setup.py README.md LICENSE MLproject Makefile ./
COPY --chown=lever:lever entrypoints entrypoints
COPY --chown=lever:lever data_checks data_checks
COPY --chown=lever:lever lever_mlflow lever_mlflow
RUN pip install --no-cache-dir --constraint /venv/constraints.txt --editable .

# The embedded data set, features and the VLM's answers; a named volume keeps them from one container to the next.
VOLUME /cache

CMD ["mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "demo"]

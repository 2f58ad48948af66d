# One image for servers, coordinator, agents and service; their commands are in compose.yaml.
#
#   docker build -t promptkd .                                   torch from PyPI, with CUDA
#   docker build -t promptkd --build-arg TORCH_INDEX=<URL> .     torch from another index
#   docker run --init --gpus device=0 --env-file .env promptkd   an agent for one more GPU
#
# The last commit is built, not the working tree. The image has no C compiler, which `run.compile`
# needs.
ARG BASE=python:3.11.15-slim-trixie

FROM ${BASE} AS base
# Not pinned: Debian's mirrors keep only the newest build of a package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*

# A clone leaves out .env, data, caches, git's configuration and uncommitted files.
FROM base AS source
COPY .git /context/.git
RUN git clone --quiet --single-branch file:///context/.git /srv/promptkd \
    && git -C /srv/promptkd remote remove origin

FROM base
ARG TORCH_INDEX=""
LABEL org.opencontainers.image.title="promptkd" \
      org.opencontainers.image.description="PromptKD: stages, flows, registry and service" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV DO_NOT_TRACK=true \
    DVC_NO_ANALYTICS=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1
WORKDIR /srv/promptkd

# Dependencies first: these layers are cached until a version changes. The package is a stub, until
# the code is copied in its place.
COPY --from=source /srv/promptkd/pyproject.toml /srv/promptkd/constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        torch torchvision
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir pd_core \
    && touch LICENSE README.md pd_core/__init__.py \
    && pip install -c constraints.txt -e .

# A new volume takes its owner from the folder that it is mounted on.
RUN useradd --create-home --uid 1000 promptkd \
    && install --directory --owner=promptkd --group=promptkd /pictures /srv/promptkd /state
COPY --from=source --chown=promptkd:promptkd /srv/promptkd ./
USER 1000:1000
RUN mkdir -p .dvc/cache data/checkpoints paper/.dvc/cache paper/data/checkpoints

# Health checks depend on the command; see compose.yaml.
HEALTHCHECK NONE
CMD ["python", "-m", "flows.agent", "--gpu", "0"]

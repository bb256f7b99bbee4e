# docker build -t promptspool .
# docker run -d --name promptspool --read-only --tmpfs /tmp -e OPENAI_API_KEY -v "$PWD/spool:/spool" promptspool
#
# A mounted spool has to belong to the user below, or add --user "$(id -u):$(id -g)".

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# One environment builds, the other, which has no pip, is what is delivered.
COPY .ci/requirements-build.lock .ci/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r .ci/requirements-build.lock \
    && python -m venv --without-pip /opt/promptspool

COPY requirements.lock ./
RUN /opt/build/bin/pip --python /opt/promptspool/bin/python \
    install --require-hashes -r requirements.lock

COPY LICENSE README.md pyproject.toml ./
COPY daemon daemon
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/promptspool/bin/python install --no-deps /wheels/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="promptspool" \
    org.opencontainers.image.description="A print spooler for prompts: drop a file of prompts, collect the answers at the batch price." \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/promptspool /opt/promptspool
COPY daemon/promptspool/promptspool.toml /etc/promptspool/promptspool.toml
RUN install -d -o 10001 -g 10001 /spool

# For what `docker exec` runs, too. Where secrets are mounted one may be named as api_key_env.
ENV PATH=/opt/promptspool/bin:$PATH \
    PROMPTSPOOL_CONFIG=/etc/promptspool/promptspool.toml \
    PROMPTSPOOL_SPOOL__PATH=/spool \
    CREDENTIALS_DIRECTORY=/run/secrets
USER 10001:10001
WORKDIR /spool
VOLUME /spool
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=1m --timeout=10s --start-period=2m CMD ["promptspool", "health"]
ENTRYPOINT ["promptspool"]
CMD ["run"]

# docker build -t promptspool .
# docker run -e OPENAI_API_KEY -v "$PWD/spool:/spool" promptspool
#
# A mounted spool has to belong to the user below, or add --user "$(id -u):$(id -g)".

FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

RUN python -m venv /opt/promptspool
COPY requirements.lock ./
RUN /opt/promptspool/bin/pip install --require-hashes -r requirements.lock

COPY .ci/requirements-build.lock .ci/
RUN pip install --require-hashes -r .ci/requirements-build.lock
COPY LICENSE README.md pyproject.toml ./
COPY daemon daemon
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/promptspool/bin/pip install --no-deps /wheels/*.whl

FROM python:3.12-slim
COPY --from=build /opt/promptspool /opt/promptspool
COPY daemon/promptspool/promptspool.toml /etc/promptspool/promptspool.toml
RUN install -d -o 10001 -g 10001 /spool

ENV PATH=/opt/promptspool/bin:$PATH PROMPTSPOOL_SPOOL__PATH=/spool
USER 10001:10001
WORKDIR /spool
VOLUME /spool
ENTRYPOINT ["promptspool"]
CMD ["run", "--config", "/etc/promptspool/promptspool.toml"]

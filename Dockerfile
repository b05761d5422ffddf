# One image for every role of the cluster: worker, beat, Flower, migrations and the command line.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Dependencies first: they change seldom, so that this layer is kept.
WORKDIR /tmp/build
COPY pyproject.toml constraints.txt README.md LICENSE celeryconfig.py ./
COPY synthgen ./synthgen
COPY storage ./storage
COPY tasks ./tasks
COPY cli ./cli
COPY migrations ./migrations
RUN pip install -c constraints.txt . && rm -rf /tmp/build

# Work happens where no folder is called tasks or storage: the installed packages are the ones that are used.
RUN useradd --create-home --uid 1000 synthgen && install -d -o synthgen -g synthgen /var/lib/synthgen /work
ENV SYNTHGEN_HOME=/var/lib/synthgen
USER synthgen
WORKDIR /work

ENTRYPOINT []
CMD ["synthgen", "--help"]

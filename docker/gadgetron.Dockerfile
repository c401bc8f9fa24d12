# Gadgetron with spinstream's gadgets and pipelines installed where it looks. From the root of the repository:
#   docker build -f docker/gadgetron.Dockerfile -t spinstream:gadgetron .
# On a GPU, with torch's own CUDA libraries beside Gadgetron's:
#   docker build -f docker/gadgetron.Dockerfile -t spinstream:gadgetron-cuda \
#       --build-arg GADGETRON=ghcr.io/gadgetron/gadgetron/gadgetron_ubuntu_rt_cuda:latest \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Gadgetron publishes no numbered images; whoever needs the same one again gives its digest.

ARG GADGETRON=ghcr.io/gadgetron/gadgetron/gadgetron_ubuntu_rt_nocuda:latest

FROM ${GADGETRON} AS dependencies
# hadolint ignore=DL3002
USER 0
# The entry point of Gadgetron's image activates this environment, so its python is the first on the server's PATH.
ENV PATH=/opt/conda/envs/gadgetron/bin:$PATH
WORKDIR /opt/spinstream
# What Gadgetron's environment pins stays as it is, but for setuptools, which torch wants newer; the rest is the set
# tested for that age.
COPY constraints-oldest.txt ./
RUN python -m pip list --format freeze --exclude setuptools > theirs.txt \
    && awk -F '[=; ]' 'NR == FNR {theirs[tolower($1)]; print; next} !(tolower($1) in theirs)' \
        theirs.txt constraints-oldest.txt > constraints.txt
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m pip install --no-cache-dir --constraint constraints.txt --index-url "${TORCH_INDEX}" torch
COPY setup.cfg pyproject.toml ./
RUN python -m pip install --no-cache-dir --constraint constraints.txt '.[fast]' \
    && python -m pip uninstall --yes spinstream

FROM dependencies AS package
COPY README.md LICENSE ./
COPY recon_core recon_core
COPY gadgets gadgets
COPY pipelines pipelines
RUN python -m pip install --no-cache-dir --no-deps --ignore-installed --prefix /package .

FROM dependencies AS gadgetron
COPY --from=package /package /opt/conda/envs/gadgetron
# State is what outlives a session, such as field maps; the number is the user's of Gadgetron's image.
RUN spinstream pipelines --export /opt/conda/envs/gadgetron/share/gadgetron/config \
    && install --directory --owner 1000 --group 1000 --mode 0700 /state
ENV XDG_STATE_HOME=/state
USER 1000
VOLUME ["/state"]
EXPOSE 9002
STOPSIGNAL SIGTERM
# A client that leaves at once costs Gadgetron nothing.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 9002), timeout=4).close()"]

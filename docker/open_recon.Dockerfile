# An image as Siemens' Open Recon takes it: the server, one pipeline, and a label that says what the host must give.
#   docker build -f docker/open_recon.Dockerfile -t openrecon_spinstream_spinstream:v0.1.0 \
#       --build-arg LABEL="$(base64 --wrap=0 docker/open_recon.json)" .
# See docker/README.md for what this was checked against.

ARG SERVER=spinstream:cuda
FROM ${SERVER}
# The scanner asks for a configuration that is called openrecon.
COPY pipelines/definitions/cg_sense.xml /etc/spinstream/openrecon.xml
ARG LABEL
# The key is Siemens's.
# hadolint ignore=DL3048
LABEL "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"="${LABEL}"
# Nothing is recorded on the scanner's host.
CMD ["serve", "--host", "0.0.0.0", "--monitor", "127.0.0.1:9003", "--definitions", "/etc/spinstream"]

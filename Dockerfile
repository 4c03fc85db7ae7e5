# pgbridge as a container: one static binary on a small base, not root.
# docs/docker.md says how to run it, docker-compose.yml runs three.

FROM golang:1.26.8-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /pgbridge ./cmd/pgbridge

FROM alpine:3.22
# The data directory belongs to the user, so that a new volume on it does too.
RUN adduser -D -H -u 10001 pgbridge && install -d -o pgbridge -g pgbridge -m 0700 /var/lib/pgbridge
COPY --from=build /pgbridge /usr/local/bin/pgbridge
USER 10001:10001
VOLUME /var/lib/pgbridge
# NATS, which the other nodes read from, and the console.
EXPOSE 4222 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgbridge"]
CMD ["run", "--config", "/etc/pgbridge/pgbridge.yaml"]

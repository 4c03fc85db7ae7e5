// Package compose checks the files that run pgbridge in containers, where there
// is no container engine: docker-compose.yml against the compose specification
// (schema, references, interpolation), by the loader that docker compose itself
// uses, and Dockerfile and .dockerignore against what the build needs.
//
// It is a module of its own, since that loader brings a dozen modules that
// pgbridge has no use for. That the services' commands work is another matter:
// ../compose_run_test.go runs them as processes.
package compose

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
)

// machine is what the run was made on, as far as /proc tells.
type machine struct {
	CPU       string `json:"cpu"`
	Cores     int    `json:"cores"`
	MemoryMiB int64  `json:"memory_mib"`
	System    string `json:"system"`
}

// String gives "2 cores of AMD EPYC, 24 GiB, linux 6.1.0".
func (m machine) String() string {
	return fmt.Sprintf("%d cores of %s, %d GiB, %s", m.Cores, m.CPU, (m.MemoryMiB+512)/1024, m.System)
}

func readMachine() machine {
	m := machine{CPU: runtime.GOARCH, Cores: runtime.NumCPU(), System: runtime.GOOS}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, found := strings.Cut(string(text), "model name\t: ")
		if name, _, _ := strings.Cut(rest, "\n"); found {
			m.CPU = strings.TrimSpace(name)
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib int64
		if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kib); err == nil {
			m.MemoryMiB = kib >> 10
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.System += " " + strings.TrimSpace(string(text))
	}
	return m
}

// versions names what was measured.
func (b *bench) versions(ctx context.Context) map[string]string {
	v := b.opts.rivalVersions(ctx)
	v["postgresql"] = b.install.Version
	for name, path := range map[string]string{"pgbridge": b.opts.binary, "pgbench": b.pgbench} {
		flag := "--version"
		if name == "pgbridge" {
			flag = "version"
		}
		if out, err := exec.CommandContext(ctx, path, flag).Output(); err == nil {
			v[name] = strings.TrimSpace(string(out))
		}
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range build.Deps {
			if dep.Path == "github.com/nats-io/nats-server/v2" {
				v["nats-server"] = dep.Version
			}
		}
	}
	return v
}

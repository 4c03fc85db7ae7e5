package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Where there is no /proc there are no figures: everything here is empty then.

// ticksPerSecond is USER_HZ, in which /proc counts CPU time: 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// ticks is the CPU time that processes have taken so far, by what they are.
type ticks struct {
	live map[int]spent     // by process id
	dead map[string]uint64 // by server: all children that its postmaster has reaped
}

type spent struct {
	kind, server string // server is "" for what is not PostgreSQL's
	ticks        uint64
}

// ticks reads the times of the servers' processes and of the others, given by name.
func (p *pair) ticks(others map[string]int) ticks {
	t := ticks{live: map[int]spent{}, dead: map[string]uint64{}}
	for name, pid := range others {
		if st, err := readStat(pid); err == nil {
			t.live[pid] = spent{kind: name, ticks: st.own}
		}
	}
	servers := map[int]string{}
	var skip []uint32 // the probe itself
	for _, s := range p.all() {
		if !s.guest {
			servers[s.cluster.Pid()] = s.name
		}
		skip = append(skip, s.conn.PgConn().PID())
	}
	found, _ := filepath.Glob("/proc/[0-9]*") // fails for a bad pattern only
	for _, dir := range found {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || slices.Contains(skip, uint32(pid)) {
			continue
		}
		st, err := readStat(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		if server, ok := servers[pid]; ok {
			t.dead[server] = st.reaped
		}
		if server, ok := servers[st.parent]; ok {
			title, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // empty when it has ended
			t.live[pid] = spent{kind: server + " " + backendKind(string(title)), server: server, ticks: st.own}
		}
	}
	return t
}

// since returns the CPU seconds of each kind of process since an earlier reading, those above a tick.
func (t ticks) since(before ticks) map[string]float64 {
	sum := map[string]int64{}
	for pid, s := range t.live {
		sum[s.kind] += int64(s.ticks - before.live[pid].ticks)
	}
	for server, reaped := range t.dead {
		sum[server+" ended"] += int64(reaped - before.dead[server])
	}
	for pid, s := range before.live { // reaped since: what it had before does not count
		if _, ok := t.live[pid]; !ok && s.server != "" {
			sum[s.server+" ended"] -= int64(s.ticks)
		}
	}
	seconds := map[string]float64{}
	for kind, n := range sum {
		if n > 0 {
			seconds[kind] = float64(n) / ticksPerSecond
		}
	}
	return seconds
}

// backendKind sorts a server process by the title that it gives itself, such as "postgres: walwriter ".
func backendKind(title string) string {
	switch {
	case strings.Contains(title, "walsender"):
		return "walsender"
	case strings.Contains(title, "logical replication"), strings.Contains(title, "pglogical"):
		return "apply workers"
	case strings.Contains(title, "[local]"), strings.Contains(title, "127.0.0.1"):
		return "backends"
	}
	return "background"
}

// stat is what /proc/<pid>/stat says.
type stat struct {
	parent      int
	own, reaped uint64 // CPU time in ticks: of the process, of the children that it has waited for
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(text)
}

// parseStat reads fields by their place behind the name, which may hold blanks: proc_pid_stat(5).
func parseStat(text []byte) (stat, error) {
	const state, parent, utime, stime, cutime, cstime = 3, 4, 14, 15, 16, 17
	i := bytes.LastIndexByte(text, ')')
	if i < 0 {
		return stat{}, fmt.Errorf("no process name in %q", text)
	}
	f := strings.Fields(string(text[i+1:]))
	if len(f) <= cstime-state {
		return stat{}, fmt.Errorf("too few fields in %q", text)
	}
	var n [cstime + 1]uint64
	for _, field := range []int{parent, utime, stime, cutime, cstime} {
		var err error
		if n[field], err = strconv.ParseUint(f[field-state], 10, 64); err != nil {
			return stat{}, err
		}
	}
	return stat{parent: int(n[parent]), own: n[utime] + n[stime], reaped: n[cutime] + n[cstime]}, nil
}

// peakRSS returns the peak resident memory of processes in bytes, by name.
func peakRSS(processes map[string]int) map[string]int64 { return memory(processes, "VmHWM:") }

// residentNow returns the present resident memory of processes in bytes, by name.
func residentNow(processes map[string]int) map[string]int64 { return memory(processes, "VmRSS:") }

// memory reads a field of /proc/<pid>/status.
func memory(processes map[string]int, field string) map[string]int64 {
	found := map[string]int64{}
	for name, pid := range processes {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), field)
		var kib int64
		if _, err := fmt.Sscanf(rest, "%d kB", &kib); err == nil {
			found[name] = kib << 10
		}
	}
	return found
}

// total sums seconds up.
func total(seconds map[string]float64) float64 {
	var sum float64
	for _, s := range seconds {
		sum += s
	}
	return math.Round(sum*100) / 100
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

// bridges is pgbridge: one process beside each server.
type bridges struct {
	*pair
	command func(node, config string) []string // what runs a bridge
	logDir  string
	line    string // what the log files are named after

	peers  int    // how many are to read the source's stream, of whom the receiver is one
	url    string // of the source's broker
	others *standIns
	ends   []*process // in the order of the servers; nil when stopped
	rested uint64     // frames in the source's stream when the bridges were stopped
}

// The names of the servers, also in the bridges' configuration.
const (
	sourceNode   = "source"
	receiverNode = "receiver"
	thirdNode    = "third"
	clusterName  = "bench"
)

// connect writes the configuration files, lets the bridges set the servers up, and waits until all run.
func (r *bridges) connect(ctx context.Context) error {
	var urls strings.Builder
	for _, s := range r.all() {
		address, err := freeAddress()
		if err != nil {
			return err
		}
		if s == r.source {
			r.url = "nats://" + address
		}
		fmt.Fprintf(&urls, "    %s: nats://%s\n", s.name, address)
	}
	for _, s := range r.all() {
		node := s.name
		text := fmt.Sprintf("cluster: %s\nnode: %s\ndata_dir: %s\npostgres:\n  dsn: %q\ntopology:\n  nodes:\n%s",
			clusterName, node, filepath.Join(r.dir, "bridge-"+node), s.dsn, &urls)
		if err := os.WriteFile(r.configFile(node), []byte(text), 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(r.logFile(node), nil, 0o644); err != nil { // an earlier run's goes
			return err
		}
	}
	if err := r.launch(); err != nil {
		return err
	}
	for _, p := range r.ends {
		if _, err := p.awaitRunning(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *bridges) configFile(node string) string { return filepath.Join(r.dir, node+".yaml") }

func (r *bridges) logFile(node string) string {
	return filepath.Join(r.logDir, fmt.Sprintf("bench-%s-%s.log", r.line, node))
}

// freeAddress finds a loopback port that is free now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// launch starts all bridges at once.
func (r *bridges) launch() error {
	for _, s := range r.all() {
		p, err := startProcess(r.command(s.name, r.configFile(s.name)), r.logFile(s.name))
		if err != nil {
			return err
		}
		r.ends = append(r.ends, p)
	}
	return nil
}

func (r *bridges) pause(ctx context.Context) error {
	count, err := r.counters(ctx)
	r.rested = count["frames"]
	return errors.Join(err, r.close())
}

// counters tells how many frames the source's bridge has published since pause, and how many conflicts
// those of the receivers have met since they started: there should be none.
func (r *bridges) counters(ctx context.Context) (map[string]uint64, error) {
	count := map[string]uint64{}
	for _, s := range r.all() {
		node := s.name
		cfg, err := config.Load(r.configFile(node), nil)
		if err != nil {
			return nil, err
		}
		status, err := bridge.Status(ctx, cfg)
		if err != nil {
			return nil, fmt.Errorf("ask the %s's bridge for its status: %w", node, err)
		}
		if last := status.Stream.LastStreamSeq; node == sourceNode && last > 0 { // 0 is not known
			count["frames"] = last - r.rested
		}
		if node == sourceNode {
			continue
		}
		for _, l := range status.Links {
			count["conflicts"] += l.Conflicts
		}
	}
	return count, nil
}

// resume starts all bridges and waits until the source's runs, which is when it begins to read the WAL:
// from then on catching up counts. What the receiver's bridge still lacks then counts too.
func (r *bridges) resume(ctx context.Context) (time.Time, time.Duration, error) {
	launched := time.Now()
	if err := r.launch(); err != nil {
		return launched, 0, err
	}
	running, err := r.ends[0].awaitRunning(ctx)
	if err == nil && r.peers > 1 {
		r.others, err = startStandIns(context.WithoutCancel(ctx), r.peers-1, r.url, r.rested) // close ends them
	}
	return running, running.Sub(launched), err
}

func (r *bridges) failed() error {
	for _, p := range r.ends {
		if err := p.ended(); err != nil {
			return err
		}
	}
	return nil
}

func (r *bridges) processes() map[string]int {
	pids := map[string]int{}
	for i, p := range r.ends {
		pids[r.all()[i].name+" bridge"] = p.pid()
	}
	return pids
}

func (r *bridges) warnings() (all []string) {
	for _, p := range r.ends {
		all = append(all, p.complaints()...)
	}
	return all
}

// close stops all bridges in an orderly way.
func (r *bridges) close() error {
	errs := []error{r.others.close()}
	r.others = nil
	for _, p := range r.ends {
		errs = append(errs, p.stop())
	}
	r.ends = nil
	return errors.Join(errs...)
}

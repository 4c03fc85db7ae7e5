package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/stream"
)

// What further peers cost the source. Native gets further subscriptions, each with a database of its own on the
// receiver. pgbridge gets stand-ins, which read the source's stream as a peer's bridge does and drop what they get:
// eight bridges and servers would be measured by how they share two cores.

// peersLine is the same catch-up with that many peers.
func peersLine(peers int) line {
	plural := "s"
	if peers == 1 {
		plural = ""
	}
	return line{name: fmt.Sprintf("peers-%d", peers), title: fmt.Sprintf("pgbench -N to %d peer%s", peers, plural),
		kind: kindCatchUp, unit: "transactions", amount: 50_000, least: 400, long: true, peers: peers,
		prepare: preparePgbench, write: writeSmall}
}

// peerDatabases are the databases of native's further peers.
func peerDatabases(peers int) []*server {
	var more []*server
	for place := 2; place <= peers; place++ {
		more = append(more, &server{name: fmt.Sprintf("peer%d", place), place: place, guest: true})
	}
	return more
}

// open makes a database on another server's cluster.
func (s *server) open(ctx context.Context, host *server) (err error) {
	if err := host.exec(ctx, "CREATE DATABASE "+s.name); err != nil {
		return err
	}
	s.cluster, s.dsn = host.cluster, host.cluster.SocketDSN(s.name)
	s.conn, err = pgx.Connect(ctx, s.dsn)
	return err
}

// standIns read a stream to its end and go on.
type standIns struct {
	conn    *nats.Conn
	readers []*stream.Reader
	end     context.CancelFunc
	group   errgroup.Group
}

// startStandIns starts n readers of the source's stream, of the frames beyond rested.
func startStandIns(ctx context.Context, n int, url string, rested uint64) (*standIns, error) {
	conn, err := nats.Connect(url)
	if err != nil {
		return nil, fmt.Errorf("connect stand-ins for peers: %w", err)
	}
	s := &standIns{conn: conn}
	ctx, s.end = context.WithCancel(ctx)
	for range n {
		reader, err := stream.NewReader(conn, stream.ReaderOptions{Cluster: clusterName, Sender: sourceNode})
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.readers = append(s.readers, reader)
		s.group.Go(func() error {
			err := reader.Run(ctx, rested+1, func(context.Context, stream.Message) error { return nil })
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("stand-in for a peer: %w", err)
		})
	}
	return s, nil
}

// await waits until all have read up to the frame.
func (s *standIns) await(ctx context.Context, last uint64) error {
	for _, r := range s.readers {
		for r.Stats().Next <= last {
			if state, err := r.State(); state == stream.StateStopped {
				return fmt.Errorf("stand-in for a peer: %w", err)
			}
			if err := rest(ctx, pollPause); err != nil {
				return err
			}
		}
	}
	return nil
}

// close ends the readers. It is no error to have none.
func (s *standIns) close() error {
	if s == nil {
		return nil
	}
	s.end()
	err := s.group.Wait()
	s.conn.Close()
	return err
}

// await waits until the stand-ins have what the receiver has.
func (r *bridges) await(ctx context.Context) error {
	if r.others == nil {
		return nil
	}
	cfg, err := config.Load(r.configFile(sourceNode), nil)
	if err != nil {
		return err
	}
	asked, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	status, err := bridge.Status(asked, cfg)
	if err != nil {
		return fmt.Errorf("ask the source's bridge for its last frame: %w", err)
	}
	return r.others.await(ctx, status.Stream.LastStreamSeq)
}

package bridge

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/catalog"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/stream"
)

// A command that must know how other nodes are asks their bridges, each over its own broker; nobody needs to run here for that.
//
//	question = 'c'    what its tables look like, with what follows
//	         | 'h'    what it has applied, and what its clock says
//	         | 's'    its report, with that
//	answer   = 'a' gzip of the JSON of a nodeAnswer
//	         | 'x' text    why there is none
const (
	askCatalog, askHave, askReport = 'c', 'h', 's'
	answerNode                     = 'a'
)

const (
	// connectPatience is how long it may take to connect to another node's broker: somebody waits.
	connectPatience = 3 * time.Second
	// catalogPatience is how long another node may take to answer.
	catalogPatience = 15 * time.Second
	// reportPatience is how long a report may take that another node asks for; one says, too, that the database is away.
	reportPatience = 5 * time.Second
	// answerLimit bounds an answer when it is unpacked.
	answerLimit = 64 << 20
)

// nodeAnswer is what a node says of itself.
type nodeAnswer struct {
	Node   string            `json:"node"`
	At     time.Time         `json:"at"`   // its clock, when it answered
	Have   map[string]uint64 `json:"have"` // up to which seq it has applied each other node's transactions
	Graph  string            `json:"graph"`
	Policy map[string]string `json:"policy"`
	Tables *catalog.Summary  `json:"tables,omitempty"`
	Report *Report           `json:"report,omitempty"`
}

// answerNodes answers others until ctx ends.
func (l *life) answerNodes(ctx context.Context) error {
	stop, err := stream.Answer(l.conns[0], stream.CatalogSubject(l.cfg.Cluster, l.cfg.Node), func(asker string, q []byte) []byte {
		a, err := l.answerNode(ctx, asker, q)
		if err != nil {
			return refuse(err)
		}
		return a
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	stop()
	return nil
}

func (l *life) answerNode(ctx context.Context, asker string, q []byte) ([]byte, error) {
	if len(q) != 1 || q[0] != askCatalog && q[0] != askHave && q[0] != askReport {
		return nil, errors.New("the question is not known here; is this bridge as new as the one that asks?")
	}
	a := nodeAnswer{Node: l.cfg.Node, Graph: l.cfg.Graph().String(), Policy: l.cfg.Policies(), Have: map[string]uint64{}}
	if q[0] == askCatalog {
		ctx, cancel := context.WithTimeout(ctx, catalogPatience)
		defer cancel()
		var err error
		if a.Tables, err = readCatalog(ctx, l.cfg); err != nil {
			return nil, err
		}
		if without := residencyOf(l.cfg).without(asker); without != nil {
			a.Tables = a.Tables.Only(func(schema, table string) bool { return !without(schema, table) })
		}
	}
	if q[0] == askReport {
		ctx, cancel := context.WithTimeout(ctx, reportPatience)
		defer cancel()
		a.Report = l.report(ctx)
	}
	for _, o := range l.applier.Status() {
		a.Have[o.Origin.Node] = o.Seq
	}
	a.At = time.Now()
	b, err := packAnswer(&a)
	if most := l.conns[0].MaxPayload(); err == nil && int64(len(b)) > most {
		err = fmt.Errorf("what it would tell of its tables takes %d bytes, and its broker's messages hold %d; raise nats.embedded.max_payload, or max_payload of the broker", len(b), most)
	}
	return b, err
}

func packAnswer(a *nodeAnswer) ([]byte, error) {
	b := bytes.NewBuffer([]byte{answerNode})
	z := gzip.NewWriter(b)
	if err := json.NewEncoder(z).Encode(a); err != nil {
		return nil, err
	}
	err := z.Close()
	return b.Bytes(), err
}

func unpackAnswer(b []byte) (*nodeAnswer, error) {
	switch {
	case len(b) > 0 && b[0] == answerRefuse:
		return nil, errors.New(string(b[1:]))
	case len(b) == 0 || b[0] != answerNode:
		return nil, errors.New("its answer cannot be understood; is its bridge as new as this one?")
	}
	z, err := gzip.NewReader(bytes.NewReader(b[1:]))
	if err != nil {
		return nil, err
	}
	a := &nodeAnswer{}
	err = json.NewDecoder(io.LimitReader(z, answerLimit)).Decode(a)
	return a, err
}

// readCatalog reads what the tables of this node look like.
func readCatalog(ctx context.Context, cfg *config.Config) (*catalog.Summary, error) {
	conn, err := capture.Connect(ctx, cfg.Postgres.DSN)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return catalog.Read(ctx, conn, cfg.Node, cfg.Tables)
}

// catalogAsker asks one other node.
type catalogAsker struct {
	cfg  *config.Config
	node string
	nc   *nats.Conn
}

// ask asks one question. The answer is of the node that was meant: brokers may be shared.
func (k *catalogAsker) ask(ctx context.Context, question byte) (*nodeAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogPatience)
	defer cancel()
	b, err := stream.Ask(ctx, k.nc, stream.CatalogSubject(k.cfg.Cluster, k.node), []byte{question})
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("it does not answer within %s", catalogPatience)
	}
	if err != nil {
		return nil, err
	}
	a, err := unpackAnswer(b)
	if err == nil && a.Node != k.node {
		err = fmt.Errorf("node %q answers in its place", a.Node)
	}
	return a, err
}

// reachNode returns a connection to another node's server, which may be away for now.
func (b *bridge) reachNode(node string) (*nats.Conn, error) {
	if !b.cfg.Edge(node) {
		return b.connect(b.cfg.Topology.Nodes[node], node)
	}
	if l, _ := b.current.get(); l != nil {
		return l.reach(node)
	}
	return nil, fmt.Errorf("node %s is an edge, which only the bridges of its neighbours reach", node)
}

// askOthers connects to every other node's broker, and calls fn with each or with the reason why it is not reached; all at once.
func (b *bridge) askOthers(ctx context.Context, fn func(ctx context.Context, node string, k *catalogAsker, err error)) error {
	var g errgroup.Group
	for _, node := range peerNames(b.cfg) {
		g.Go(func() error {
			nc, err := b.reachNode(node)
			if err != nil {
				fn(ctx, node, nil, err)
				return nil
			}
			defer nc.Close()
			wait, cancel := context.WithTimeout(ctx, connectPatience)
			defer cancel()
			fn(ctx, node, &catalogAsker{b.cfg, node, nc}, stream.AwaitConnected(wait, nc))
			return nil
		})
	}
	return g.Wait()
}

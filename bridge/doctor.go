package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/catalog"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/doctor"
	"github.com/pgbridge/pgbridge/stream"
)

// Examination is what a doctor has found at a node.
type Examination = doctor.Report

// ExaminationFinding is one of its findings.
type ExaminationFinding = doctor.Finding

// ExaminationSeverity says how soon a person must look at a finding.
type ExaminationSeverity = doctor.Severity

// The severities of findings, gravest first.
const (
	FindingError   = doctor.Error
	FindingWarning = doctor.Warning
	FindingNote    = doctor.Note
)

// Doctor looks at everything that a node's bridge rests on, whether one runs or not: what cannot be reached is a finding. An
// error means that the examination itself was ended.
func Doctor(ctx context.Context, cfg *config.Config) (*Examination, error) {
	d := &doctors{bridge: &bridge{cfg: cfg, primary: capture.NewPrimary(cfg.Postgres.DSN), log: slog.New(slog.DiscardHandler)},
		facts: &doctor.Facts{Config: cfg, Now: time.Now().UTC(), Slot: slotName(cfg), Unknown: map[doctor.Part]string{}}}
	defer d.primary.Close()
	probe := d.askBridge(ctx)
	d.askServer(ctx)
	d.askBroker(ctx)
	d.askDisks()
	if err := d.askNodes(ctx, probe); err != nil {
		return nil, err
	}
	d.credentials()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return doctor.Examine(d.facts), nil
}

// doctors gathers facts.
type doctors struct {
	*bridge
	facts *doctor.Facts
	mu    sync.Mutex // guards facts while nodes are asked
}

// unknown says why parts of the facts could not be learnt.
func (d *doctors) unknown(why string, parts ...doctor.Part) {
	for _, p := range parts {
		d.facts.Unknown[p] = why
	}
}

// askBridge asks the bridge that runs here, if one does, and has it make a probe.
func (d *doctors) askBridge(ctx context.Context) *probeResult {
	r, err := Status(ctx, d.cfg)
	if err != nil {
		d.unknown("no bridge runs here", doctor.PartBridge)
		return nil
	}
	b := &doctor.Bridge{Waiting: r.Waiting}
	d.facts.Bridge = b
	for _, a := range r.Alarms {
		b.Alarms = append(b.Alarms, doctor.Finding{Code: a.Code, Severity: doctor.Severity(a.Severity), Text: a.Text, Mend: a.Mend})
	}
	if r.Waiting != "" {
		return nil
	}
	p, failed := d.askProbe(ctx)
	if b.Failed = strings.TrimSpace(failed); p != nil {
		b.Probe = &doctor.Probe{WAL: p.WAL, Broker: p.Broker}
	}
	return p
}

// askServer asks the primary: first what capture itself asks at each start.
func (d *doctors) askServer(ctx context.Context) {
	f := d.facts
	o, err := captureSetup(ctx, d.cfg, d.primary)
	if err != nil {
		o = checkOptions(d.cfg, d.primary) // what is in the way is found again
	}
	f.HasRun = o.HasRun
	if err = capture.Check(ctx, o); d.found(err) {
		return
	}
	conn, err := capture.Connect(ctx, d.cfg.Postgres.DSN)
	if err != nil {
		d.found(err)
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	d.serverCertificate(conn)
	if f.Server, err = doctor.ReadServer(ctx, conn, d.cfg, f.Slot); err != nil {
		d.unknown(err.Error(), doctor.PartServer)
	}
	if f.Tables, err = catalog.Read(ctx, conn, d.cfg.Node, d.cfg.Tables); err != nil {
		d.unknown(err.Error(), doctor.PartTables)
	}
}

// found takes in what capture has found, and reports whether that is all that can be learnt.
func (d *doctors) found(err error) (end bool) {
	var check *capture.CheckError
	switch {
	case err == nil:
		return false
	case errors.As(err, &check):
		d.facts.Capture = append(d.facts.Capture, check.Findings...)
		if !check.Has(capture.CodeUnreachable) && !check.Has(capture.CodeConnect) && !check.Has(capture.CodeStandby) && !check.Has(capture.CodeVersion) {
			return false
		}
		d.unknown(check.Findings[0].Thing+" "+check.Findings[0].Fault, doctor.PartServer, doctor.PartTables)
	default:
		d.facts.Capture = append(d.facts.Capture, capture.Finding{Code: capture.CodeConnect, Thing: "postgresql", Fault: "cannot be asked: " + err.Error(), Mend: "see the server's log"})
		d.unknown(err.Error(), doctor.PartServer, doctor.PartTables)
	}
	return true
}

func (d *doctors) serverCertificate(conn *pgx.Conn) {
	const mend = "put a new one into ssl_cert_file, and run SELECT pg_reload_conf()"
	if c, ok := conn.PgConn().Conn().(*tls.Conn); ok {
		if ends, ok := stream.Ends(c.ConnectionState()); ok {
			d.certificate("postgresql at "+conn.Config().Host, ends, mend)
		}
	}
	if t := conn.Config().TLSConfig; t != nil {
		for _, c := range t.Certificates {
			if c.Leaf != nil {
				d.certificate("this client, sslcert in postgres.dsn", c.Leaf.NotAfter, "let the authority that the server trusts make a new one")
			}
		}
	}
}

func (d *doctors) certificate(of string, ends time.Time, mend string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.facts.Certs = append(d.facts.Certs, doctor.Certificate{Of: of, Ends: ends, Mend: mend})
}

// brokerCertificate notes when a broker's certificate ends.
func (d *doctors) brokerCertificate(of string, nc *nats.Conn) {
	if ends, ok := stream.CertificateEnds(nc); ok {
		mend := "put a new one into the tls section of its configuration, and reload it"
		if d.cfg.NATS.KeysDir != "" {
			mend = "run pgbridge keys again, and bring what it has made to that node (docs/security.md)"
		}
		d.certificate("the broker "+of, ends, mend)
	}
}

// credentials looks when those for brokers end.
func (d *doctors) credentials() {
	file := d.cfg.NATS.CredsFile
	if file == "" {
		return
	}
	if ends, ok, err := stream.CredentialsEnd(file); err == nil && ok { // one that cannot be read keeps from connecting, which is found
		d.certificate("nats.creds_file "+file, ends, "let the account's operator make new ones")
	}
}

// ownBroker is where the broker of the node's own stream is reached from here.
func (d *doctors) ownBroker() string {
	if !d.cfg.Embedded() {
		return d.cfg.NATS.URL
	}
	host, port, err := net.SplitHostPort(d.cfg.NATS.Embedded.Listen)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return "nats://" + net.JoinHostPort(host, port)
}

// askBroker asks the broker of the node's own stream.
func (d *doctors) askBroker(ctx context.Context) {
	if d.cfg.Embedded() && d.facts.Bridge == nil {
		d.unknown("the embedded broker runs with the bridge, and no bridge runs here", doctor.PartBroker)
		return
	}
	b := &doctor.Broker{URL: d.ownBroker()}
	d.facts.Broker = b
	nc, err := d.connect(b.URL, "its own stream")
	if err != nil {
		b.Problem = err.Error()
		return
	}
	defer nc.Close()
	x, err := stream.CheckBroker(ctx, nc, "")
	b.URL, b.MaxPayload, b.StoreLimit, b.Stored = x.URL, x.MaxPayload, x.StoreLimit, x.Store
	if err != nil {
		b.Problem = err.Error()
		return
	}
	d.brokerCertificate("of the node's own stream, "+x.URL, nc)
	name := stream.StreamName(d.cfg.Cluster, d.cfg.Node)
	kept, err := stream.LookUp(ctx, nc, "", name)
	switch {
	case err == nil:
		b.Stream = &doctor.Stream{Name: name, Bytes: kept.Bytes, MaxBytes: kept.MaxBytes, Replicas: kept.Replicas, Clustered: kept.Clustered}
	case !stream.IsNoStream(err): // before the first start there is none
		b.Problem = err.Error()
	}
}

// askDisks looks at the file system of data_dir. That of the server is another machine's, or not ours to see.
func (d *doctors) askDisks() {
	path := d.cfg.DataDir
	free, err := roomAt(path)
	if err != nil { // before the first start it need not be there
		d.unknown("data_dir: "+err.Error(), doctor.PartDisks)
		return
	}
	disk := doctor.Disk{What: "data_dir", Path: path, Free: free}
	if d.cfg.Embedded() {
		stored := int64(0)
		if d.facts.Broker != nil {
			stored = int64(d.facts.Broker.Stored)
		}
		disk.Need, disk.Limit = max(int64(d.cfg.NATS.Embedded.MaxStore)-stored, 0), "nats.embedded.max_store"
	}
	if limit := int64(d.cfg.Apply.SpoolLimit); limit > 0 {
		disk.Need += limit
		if disk.Limit != "" {
			disk.Limit += " and "
		}
		disk.Limit += "apply.spool_limit"
	}
	d.facts.Disks = append(d.facts.Disks, disk)
}

// askNodes asks the other nodes. If a probe was made, they are asked until they have what was captured then, or it takes too long.
func (d *doctors) askNodes(ctx context.Context, probe *probeResult) error {
	all := map[string]doctor.Node{}
	err := d.askOthers(ctx, func(ctx context.Context, name string, k *catalogAsker, err error) {
		n := doctor.Node{Name: name}
		if err == nil {
			d.brokerCertificate("of node "+name, k.nc)
			err = d.askNode(ctx, &n, k, probe)
		}
		if err != nil {
			n = doctor.Node{Name: name, Problem: err.Error()}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		all[name] = n
	})
	for _, name := range peerNames(d.cfg) {
		d.facts.Nodes = append(d.facts.Nodes, all[name])
	}
	return err
}

// deliveryPatience is how long another node may take to apply what was captured here when it was asked first.
const deliveryPatience = 10 * time.Second

func (d *doctors) askNode(ctx context.Context, n *doctor.Node, k *catalogAsker, probe *probeResult) error {
	a, err := k.ask(ctx, askCatalog)
	if err != nil {
		return err
	}
	n.Tables, n.Graph, n.Policy, n.Without = a.Tables, a.Graph, a.Policy, residencyOf(d.cfg).without(n.Name)
	for end := time.Now().Add(deliveryPatience); ; {
		asked := time.Now()
		if a, err = k.ask(ctx, askHave); err != nil {
			return err
		}
		n.Within = time.Since(asked)
		n.Ahead = a.At.Sub(asked.Add(n.Within / 2))
		if n.Behind = 0; probe != nil && probe.Seq > a.Have[d.cfg.Node] {
			n.Behind = probe.Seq - a.Have[d.cfg.Node]
		}
		if n.Behind == 0 || time.Now().After(end) {
			return nil
		}
		select {
		case <-time.After(deltaPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

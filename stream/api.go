package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// apiTimeout bounds one request to the broker: above a leader election, below a person's patience.
const apiTimeout = 5 * time.Second

// Error codes of the JetStream API, from nats-server's server/errors.json, that the client library does
// not name.
const (
	codeAccountFull   jetstream.ErrorCode = 10002
	codeNoPeers       jetstream.ErrorCode = 10005
	codeServerFull    jetstream.ErrorCode = 10023
	codeNoStorage     jetstream.ErrorCode = 10047
	codeSubjectsTaken jetstream.ErrorCode = 10065
	codeNotClustered  jetstream.ErrorCode = 10074
	codeStoreFailed   jetstream.ErrorCode = 10077

	codeNotEnabled           = jetstream.JSErrCodeJetStreamNotEnabled
	codeNotEnabledForAccount = jetstream.JSErrCodeJetStreamNotEnabledForAccount
)

// api makes requests of one broker's JetStream. It asks the stream's leader, except for direct gets,
// which any replica may answer.
type api struct {
	nc     *nats.Conn
	prefix string
}

func newAPI(nc *nats.Conn, domain string) api {
	if domain == "" {
		return api{nc, "$JS.API."}
	}
	return api{nc, "$JS." + domain + ".API."}
}

// ask sends req (nil: nothing) and decodes the answer into resp. An error that the broker reports is a
// *jetstream.APIError; nats.ErrNoResponders means that there is no JetStream.
func (a api) ask(ctx context.Context, subject string, req, resp any) error {
	var body []byte
	if req != nil {
		var err error
		if body, err = json.Marshal(req); err != nil {
			return err
		}
	}
	m, err := a.request(ctx, &nats.Msg{Subject: a.prefix + subject, Data: body})
	if err != nil {
		return err
	}
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &failed); err != nil {
		return fmt.Errorf("answer to %s%s: %w", a.prefix, subject, err)
	}
	if failed.Error != nil {
		return failed.Error
	}
	if resp == nil {
		return nil
	}
	return json.Unmarshal(m.Data, resp)
}

// request sends m and waits for the answer, at most apiTimeout. The client library would wait that long
// for an answer that was lost with its connection; here that is an error at once.
func (a api) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	status := a.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case s := <-status:
			abort(fmt.Errorf("%w: connection is %v", errAway, s))
		case <-ctx.Done():
		}
	})
	answer, err := a.nc.RequestMsgWithContext(ctx, m)
	abort(nil)
	watch.Wait()
	a.nc.RemoveStatusListener(status)
	if err == nil {
		return answer, nil
	}
	if cause := context.Cause(ctx); errors.Is(cause, errAway) {
		err = cause
	}
	return nil, a.explain(m.Subject, err)
}

// explain adds to a time-out what the connection knows: a missing permission is reported to its error
// callback only, and the request then times out.
func (a api) explain(subject string, err error) error {
	last := a.nc.LastError()
	late := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errOverdue)
	if late && errors.Is(last, nats.ErrPermissionViolation) {
		return fmt.Errorf("%s: %w (%w)", subject, last, err)
	}
	return fmt.Errorf("%s: %w", subject, err)
}

func (a api) stream(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	var s jetstream.StreamInfo
	if err := a.ask(ctx, "STREAM.INFO."+name, nil, &s); err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", name, err)
	}
	return &s, nil
}

func (a api) create(ctx context.Context, c jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	var s jetstream.StreamInfo
	err := a.ask(ctx, "STREAM.CREATE."+c.Name, c, &s)
	return &s, err
}

func (a api) update(ctx context.Context, c jetstream.StreamConfig) (*jetstream.StreamInfo, error) {
	var s jetstream.StreamInfo
	err := a.ask(ctx, "STREAM.UPDATE."+c.Name, c, &s)
	return &s, err
}

// message reads one message from the leader. isNoMessage tells that there is none.
func (a api) message(ctx context.Context, stream string, seq uint64) ([]byte, error) {
	var resp struct {
		Message struct {
			Data []byte `json:"data"`
		} `json:"message"`
	}
	req := struct {
		Seq uint64 `json:"seq"`
	}{seq}
	if err := a.ask(ctx, "STREAM.MSG.GET."+stream, req, &resp); err != nil {
		return nil, fmt.Errorf("read message %d of stream %s: %w", seq, stream, err)
	}
	return resp.Message.Data, nil
}

// direct reads one message, from any replica: the one with this sequence or, with a subject, the first
// on that subject with this sequence or a higher one. ErrNoFrame: there is none.
func (a api) direct(ctx context.Context, stream string, seq uint64, subject string) (uint64, []byte, error) {
	body, err := json.Marshal(struct {
		Seq     uint64 `json:"seq"`
		Subject string `json:"next_by_subj,omitempty"`
	}{seq, subject})
	if err != nil {
		return 0, nil, err
	}
	m, err := a.request(ctx, &nats.Msg{Subject: a.prefix + "DIRECT.GET." + stream, Data: body})
	if err != nil {
		return 0, nil, fmt.Errorf("read message %d of stream %s: %w", seq, stream, err)
	}
	switch status := m.Header.Get("Status"); status {
	case "":
	case "404":
		return 0, nil, ErrNoFrame
	default:
		return 0, nil, fmt.Errorf("read message %d of stream %s: broker says %s %s",
			seq, stream, status, m.Header.Get("Description"))
	}
	got, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return 0, nil, fmt.Errorf("read message %d of stream %s: its sequence: %w", seq, stream, err)
	}
	return got, m.Data, nil
}

func (a api) purge(ctx context.Context, stream string, below uint64) error {
	req := struct {
		Seq uint64 `json:"seq"`
	}{below}
	if err := a.ask(ctx, "STREAM.PURGE."+stream, req, nil); err != nil {
		return fmt.Errorf("purge stream %s below %d: %w", stream, below, err)
	}
	return nil
}

func (a api) remove(ctx context.Context, stream string) error {
	if err := a.ask(ctx, "STREAM.DELETE."+stream, nil, nil); err != nil && !IsNoStream(err) {
		return fmt.Errorf("delete stream %s: %w", stream, err)
	}
	return nil
}

// hasCode reports whether the broker answered with one of these error codes.
func hasCode(err error, codes ...jetstream.ErrorCode) bool {
	var e *jetstream.APIError
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.ErrorCode == c {
			return true
		}
	}
	return false
}

// IsNoStream reports whether the broker says that there is no such stream.
func IsNoStream(err error) bool  { return hasCode(err, jetstream.JSErrCodeStreamNotFound) }
func isNoMessage(err error) bool { return hasCode(err, jetstream.JSErrCodeMessageNotFound) }

// isFull reports whether the broker refuses to store for want of room.
func isFull(err error) bool {
	return hasCode(err, codeAccountFull, codeServerFull, codeNoStorage, codeStoreFailed)
}

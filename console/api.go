package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

func (c *Console) status(_ http.ResponseWriter, r *http.Request) (any, error) {
	return c.o.Status.Status(r.Context()), nil
}

func (c *Console) others(_ http.ResponseWriter, r *http.Request) (any, error) {
	return c.o.Status.Others(r.Context()), nil
}

func (c *Console) settings(http.ResponseWriter, *http.Request) (any, error) {
	return c.o.Status.Settings(), nil
}

// pageRows is how many conflicts are told at once, and mostRows how many may be asked for.
const (
	pageRows = 50
	mostRows = 500
)

func (c *Console) conflicts(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	f := ConflictFilter{Table: q.Get("table"), Kind: q.Get("kind"), Origin: q.Get("origin"), Limit: pageRows}
	if text := q.Get("before"); text != "" {
		id, err := conflictID(text)
		if err != nil {
			return nil, err
		}
		f.Before = id
	}
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > mostRows {
			return nil, &Problem{http.StatusBadRequest, fmt.Errorf("limit %q is out of range; use 1 to %d", text, mostRows)}
		}
		f.Limit = n
	}
	return c.o.Conflicts.Conflicts(r.Context(), f)
}

func conflictID(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, &Problem{http.StatusBadRequest, fmt.Errorf("%q is not the id of a conflict; the list of conflicts shows them", text)}
	}
	return id, nil
}

func (c *Console) conflict(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := conflictID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return c.o.Conflicts.Conflict(r.Context(), id)
}

func (c *Console) undo(w http.ResponseWriter, r *http.Request) (any, error) {
	id, err := conflictID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	var asked struct {
		Force bool `json:"force"`
	}
	if err := c.readAct(w, r, &asked); err != nil {
		return nil, err
	}
	return c.o.Conflicts.Undo(r.Context(), id, UndoOptions{Force: asked.Force, By: "console@" + remote(r)})
}

func (c *Console) parked(_ http.ResponseWriter, r *http.Request) (any, error) {
	return c.o.Parked.Parked(r.Context())
}

func (c *Console) parkedChanges(_ http.ResponseWriter, r *http.Request) (any, error) {
	return c.o.Parked.ParkedChanges(r.Context(), r.URL.Query().Get("name"))
}

func (c *Console) retry(w http.ResponseWriter, r *http.Request) (any, error) {
	return c.requestParked(w, r, RetryParked)
}

func (c *Console) discard(w http.ResponseWriter, r *http.Request) (any, error) {
	return c.requestParked(w, r, DiscardParked)
}

func (c *Console) requestParked(w http.ResponseWriter, r *http.Request, request ParkedRequest) (any, error) {
	var asked struct {
		Name string `json:"name"`
		All  bool   `json:"all"`
	}
	if err := c.readAct(w, r, &asked); err != nil {
		return nil, err
	}
	if asked.All == (asked.Name != "") || asked.All && request == DiscardParked {
		return nil, &Problem{http.StatusBadRequest, errors.New("name one transaction, such as a:17; all of them can be tried again together, and not discarded")}
	}
	return c.o.Parked.RequestParked(r.Context(), asked.Name, request)
}

func (c *Console) pause(w http.ResponseWriter, r *http.Request) (any, error) {
	return c.hold(w, r, func(p Pause) error { return c.o.Pauses.Pause(r.Context(), p) })
}

func (c *Console) resume(w http.ResponseWriter, r *http.Request) (any, error) {
	return c.hold(w, r, func(p Pause) error { return c.o.Pauses.Resume(r.Context(), p) })
}

// hold begins or ends one pause.
func (c *Console) hold(w http.ResponseWriter, r *http.Request, do func(Pause) error) (any, error) {
	var p Pause
	if err := c.readAct(w, r, &p); err != nil {
		return nil, err
	}
	if (p.Origin == "") == (p.Table == "") {
		return nil, &Problem{http.StatusBadRequest, errors.New("name a node or a table, as schema.table, and not both")}
	}
	return struct{}{}, do(p)
}

// verifyLine is one line of the answer to who has nodes compared: the last one has the report, or an error.
type verifyLine struct {
	Progress any    `json:"progress,omitempty"`
	Report   any    `json:"report,omitempty"`
	Error    string `json:"error,omitempty"`
}

// linePatience is how long a line may take to be written. A comparison may take hours, and the server wants answers within a minute.
const linePatience = time.Minute

func (c *Console) verify(w http.ResponseWriter, r *http.Request) {
	var o VerifyOptions
	if err := c.readAct(w, r, &o); err != nil {
		fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Accel-Buffering", "no") // or a proxy keeps the lines until the end
	lines, control := json.NewEncoder(w), http.NewResponseController(w)
	send := func(l verifyLine) {
		_ = control.SetWriteDeadline(time.Now().Add(linePatience))
		_ = lines.Encode(l) // who has gone ends the request's context
		_ = control.Flush()
	}
	send(verifyLine{Progress: struct{}{}})
	report, err := c.o.Rows.Verify(r.Context(), o, func(progress any) { send(verifyLine{Progress: progress}) })
	if err != nil {
		send(verifyLine{Error: err.Error()})
		return
	}
	send(verifyLine{Report: report})
}

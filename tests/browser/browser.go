// Package browser lets tests drive a headless Chromium by its DevTools protocol: open
// a page, run scripts in it, wait for what must show, and collect what a browser
// complains about. Only tests use it. The browser reaches nothing but this machine,
// and leaves nothing behind.
package browser

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// patience bounds a hang; it measures nothing.
const patience = 2 * time.Minute

// Browser is one running Chromium.
type Browser struct {
	t  testing.TB
	ws *websocket.Conn

	writing sync.Mutex
	mu      sync.Mutex
	next    int
	answers map[int]chan answer
	events  map[string]func(method string, params json.RawMessage) // by DevTools session
	err     error
	over    chan struct{}
}

type answer struct {
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// Start starts Debian's chromium; the test's end ends it.
func Start(t testing.TB) *Browser {
	t.Helper()
	dir := t.TempDir()
	profile := filepath.Join(dir, "profile")
	cmd := exec.Command("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-default-apps",
		"--metrics-recording-only", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
		"--remote-debugging-address=127.0.0.1", "--remote-debugging-port=0", "--window-size=1280,900", "--user-data-dir="+profile, "about:blank")
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("start chromium: %v; `make packages` installs it", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		// Its children write until they are gone, too.
		for until := time.Now().Add(10 * time.Second); os.RemoveAll(profile) != nil && time.Now().Before(until); {
			time.Sleep(20 * time.Millisecond)
		}
	})
	where, err := devtools(filepath.Join(profile, "DevToolsActivePort"), ended)
	if err != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		t.Fatalf("chromium: %v; it said: %s", err, said.String())
	}
	ws, response, err := websocket.DefaultDialer.Dial(where, nil)
	if err != nil {
		t.Fatalf("chromium at %s: %v", where, err)
	}
	if response.Body != nil {
		_ = response.Body.Close()
	}
	b := &Browser{t: t, ws: ws, answers: make(map[int]chan answer), events: make(map[string]func(string, json.RawMessage)), over: make(chan struct{})}
	go b.read()
	t.Cleanup(func() {
		_ = ws.Close()
		<-b.over
	})
	return b
}

// devtools waits until the browser has said where it is to be driven.
func devtools(file string, ended <-chan struct{}) (string, error) {
	late := time.After(patience)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		if f, err := os.Open(file); err == nil {
			lines := bufio.NewScanner(f)
			var got []string
			for lines.Scan() {
				got = append(got, lines.Text())
			}
			_ = f.Close()
			if len(got) == 2 {
				return "ws://127.0.0.1:" + got[0] + got[1], nil
			}
		}
		select {
		case <-look.C:
		case <-ended:
			return "", errors.New("it ended at once")
		case <-late:
			return "", errors.New("it does not come up")
		}
	}
}

func (b *Browser) read() {
	defer close(b.over)
	for {
		var m struct {
			ID        int             `json:"id"`
			Method    string          `json:"method"`
			Params    json.RawMessage `json:"params"`
			SessionID string          `json:"sessionId"`
			answer
		}
		if err := b.ws.ReadJSON(&m); err != nil {
			b.mu.Lock()
			b.err = err
			for _, ch := range b.answers {
				close(ch)
			}
			clear(b.answers)
			b.mu.Unlock()
			return
		}
		b.mu.Lock()
		to, event := b.answers[m.ID], b.events[m.SessionID]
		delete(b.answers, m.ID)
		b.mu.Unlock()
		switch {
		case to != nil:
			to <- m.answer
		case event != nil:
			event(m.Method, m.Params)
		}
	}
}

// call asks the browser; session "" is the browser itself.
func (b *Browser) call(session, method string, params any, into any) error {
	ch := make(chan answer, 1)
	b.mu.Lock()
	if b.err != nil {
		defer b.mu.Unlock()
		return fmt.Errorf("%s: %w", method, b.err)
	}
	b.next++
	id := b.next
	b.answers[id] = ch
	b.mu.Unlock()
	m := map[string]any{"id": id, "method": method, "params": params}
	if session != "" {
		m["sessionId"] = session
	}
	b.writing.Lock()
	err := b.ws.WriteJSON(m)
	b.writing.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case a, ok := <-ch:
		switch {
		case !ok:
			return fmt.Errorf("%s: the browser has ended", method)
		case a.Error != nil:
			return fmt.Errorf("%s: %s", method, a.Error.Message)
		case into == nil:
			return nil
		}
		return json.Unmarshal(a.Result, into)
	case <-time.After(patience):
		return fmt.Errorf("%s: no answer", method)
	}
}

// Page is one tab.
type Page struct {
	b       *Browser
	session string

	mu         sync.Mutex
	complaints []string
}

// Open opens a tab with that address.
func (b *Browser) Open(address string) *Page {
	b.t.Helper()
	var target struct {
		TargetID string `json:"targetId"`
	}
	var attached struct {
		SessionID string `json:"sessionId"`
	}
	b.must(b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target))
	b.must(b.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached))
	p := &Page{b: b, session: attached.SessionID}
	b.mu.Lock()
	b.events[p.session] = p.event
	b.mu.Unlock()
	for _, domain := range []string{"Runtime", "Log", "Page", "Audits"} {
		b.must(b.call(p.session, domain+".enable", map[string]any{}, nil))
	}
	p.Go(address)
	return p
}

func (b *Browser) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// event keeps what a browser complains about: errors of scripts and on the console,
// and what a content security policy has stopped. Answers like 401 are the page's
// business.
func (p *Page) event(method string, params json.RawMessage) {
	var m struct {
		Type  string `json:"type"`
		Entry struct {
			Source, Level, Text string
		} `json:"entry"`
		Issue struct {
			Code string `json:"code"`
		} `json:"issue"`
	}
	_ = json.Unmarshal(params, &m) // what it lacks is empty
	bad := false
	switch method {
	case "Runtime.exceptionThrown":
		bad = true
	case "Runtime.consoleAPICalled":
		bad = m.Type == "error" || m.Type == "assert" || m.Type == "warning"
	case "Log.entryAdded":
		bad = m.Entry.Level == "error" && m.Entry.Source != "network"
	case "Audits.issueAdded":
		bad = m.Issue.Code == "ContentSecurityPolicyIssue"
	}
	if bad {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.complaints = append(p.complaints, method+" "+string(params))
	}
}

// Complaints are what the browser has complained about so far.
func (p *Page) Complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.complaints...)
}

// Go goes to an address.
func (p *Page) Go(address string) {
	p.b.t.Helper()
	if _, err := url.Parse(address); err != nil {
		p.b.t.Fatal(err)
	}
	var went struct {
		ErrorText string `json:"errorText"`
	}
	p.b.must(p.b.call(p.session, "Page.navigate", map[string]any{"url": address}, &went))
	if went.ErrorText != "" {
		p.b.t.Fatalf("go to %s: %s", address, went.ErrorText)
	}
}

// Eval runs an expression, which may be a promise, and stores what it comes to.
func (p *Page) Eval(expression string, into any) error {
	var got struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		ExceptionDetails *struct {
			Text      string `json:"text"`
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
	}
	err := p.b.call(p.session, "Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &got)
	switch {
	case err != nil:
		return err
	case got.ExceptionDetails != nil:
		return fmt.Errorf("%s: %s %s", expression, got.ExceptionDetails.Text, got.ExceptionDetails.Exception.Description)
	case into == nil || got.Result.Value == nil:
		return nil
	}
	return json.Unmarshal(got.Result.Value, into)
}

// Do is Eval where nothing may go wrong.
func (p *Page) Do(expression string) {
	p.b.t.Helper()
	p.b.must(p.Eval(expression, nil))
}

// Text is what an expression says.
func (p *Page) Text(expression string) string {
	p.b.t.Helper()
	var s string
	p.b.must(p.Eval("String("+expression+")", &s))
	return s
}

// Wait waits until an expression is true.
func (p *Page) Wait(what, expression string) {
	p.b.t.Helper()
	late := time.Now().Add(patience)
	for {
		ok := false
		err := p.Eval("Boolean("+expression+")", &ok)
		if err == nil && ok {
			return
		}
		if time.Now().After(late) {
			p.b.t.Fatalf("waited in vain until %s (%v); the page says:\n%s\nand the browser: %q", what, err, p.Text("document.body.innerText"), p.Complaints())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Screenshot is a picture of the page, as PNG.
func (p *Page) Screenshot() []byte {
	p.b.t.Helper()
	var got struct {
		Data string `json:"data"`
	}
	p.b.must(p.b.call(p.session, "Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &got))
	picture, err := base64.StdEncoding.DecodeString(got.Data)
	p.b.must(err)
	return picture
}

// Dark makes the page believe that its reader prefers dark colours.
func (p *Page) Dark() {
	p.b.t.Helper()
	p.b.must(p.b.call(p.session, "Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": "dark"}}}, nil))
}

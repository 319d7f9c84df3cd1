package dmi

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-edge/holdfast/common/dmi"
	"github.com/holdfast-edge/holdfast/edge/device"
	"github.com/holdfast-edge/holdfast/edge/twin"
)

// MapperRegister takes a mapper into service. The last one that registers for a
// protocol serves it.
func (s *Server) MapperRegister(_ context.Context, in *dmi.MapperRegisterRequest) (*dmi.MapperRegisterResponse, error) {
	m := registration{
		Name: in.GetMapper().GetName(), Version: in.GetMapper().GetVersion(),
		Protocol: in.GetMapper().GetProtocol(), Socket: strings.TrimPrefix(string(in.GetMapper().GetAddress()), "unix://"),
	}
	if err := m.check(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	answer := &dmi.MapperRegisterResponse{}
	s.mu.Lock()
	if s.ctx == nil {
		s.mu.Unlock()
		return nil, status.Error(codes.Unavailable, device.ErrEnded.Error())
	}
	was := s.sessions[m.Protocol]
	if was == nil && len(s.sessions) >= maxMappers {
		s.mu.Unlock()
		return nil, status.Errorf(codes.ResourceExhausted, "%d mappers have registered, and that is the limit", maxMappers)
	}
	session := s.newSession(m)
	if in.GetWithData() {
		answer.ModelList, answer.DeviceList = session.seed(s.o.Devices.List())
	} else {
		session.markAll(s.o.Devices.List())
	}
	s.start(session, was)
	s.mu.Unlock()
	if was != nil && was.Name != m.Name {
		s.o.Log.Warn("a mapper takes the place of another one of its protocol", "mapper", m.Name, "before", was.Name, "protocol", m.Protocol)
	}
	s.o.Log.Info("a mapper has registered", "mapper", m.Name, "version", m.Version, "protocol", m.Protocol, "socket", m.Socket, "devices", len(answer.DeviceList))
	s.store()
	return answer, nil
}

// registration is what a mapper says of itself.
type registration struct {
	Name     string `json:"name"`
	Version  string `json:"version,omitempty"`
	Protocol string `json:"protocol"`
	Socket   string `json:"socket"`
}

// check says why a registration cannot be taken.
func (r registration) check() error {
	const longest = 253
	switch {
	case r.Protocol == "":
		return errors.New("the mapper names no protocol")
	case r.Name == "":
		return errors.New("the mapper has no name")
	case len(r.Name) > longest || len(r.Protocol) > longest || len(r.Version) > longest:
		return fmt.Errorf("name, version and protocol of a mapper have %d bytes at most", longest)
	case !filepath.IsAbs(r.Socket) || !utf8.ValidString(r.Socket) || strings.ContainsRune(r.Socket, 0):
		return fmt.Errorf("mapper %s: its address %q is not the absolute path of a unix socket", r.Name, r.Socket)
	case len(r.Socket) > 107:
		return fmt.Errorf("mapper %s: the path of its socket has %d bytes, and a socket's has 107 at most", r.Name, len(r.Socket))
	}
	return nil
}

// ReportDeviceStatus takes values that a mapper has read. What the mapper says of
// observed desired values is known already, and ignored. It answers after the commit.
func (s *Server) ReportDeviceStatus(ctx context.Context, in *dmi.ReportDeviceStatusRequest) (*dmi.ReportDeviceStatusResponse, error) {
	key, err := s.find(in.GetDeviceNamespace(), in.GetDeviceName())
	if err != nil {
		return nil, refusal(err)
	}
	op := device.Operation{Key: key, Source: s}
	for _, t := range in.GetReportedDevice().GetTwins() {
		if t.GetReported() != nil {
			op.Reported = append(op.Reported, device.Update{Property: t.PropertyName, Value: value(t.Reported)})
		}
	}
	if len(op.Reported) == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "device %s: the report has no reported value", key)
	}
	if _, _, err := s.o.Devices.Do(ctx, op); err != nil {
		return nil, refusal(fmt.Errorf("device %s: %w", key, err))
	}
	return &dmi.ReportDeviceStatusResponse{}, nil
}

// ReportDeviceStates takes the state of a device's connection.
func (s *Server) ReportDeviceStates(ctx context.Context, in *dmi.ReportDeviceStatesRequest) (*dmi.ReportDeviceStatesResponse, error) {
	key, err := s.find(in.GetDeviceNamespace(), in.GetDeviceName())
	if err != nil {
		return nil, refusal(err)
	}
	if in.GetState() == "" {
		return nil, status.Errorf(codes.InvalidArgument, "device %s: the report has no state", key)
	}
	is, known := state(in.GetState())
	if !known {
		s.o.Log.Debug("a mapper reports a state of its own", "device", key, "state", in.GetState())
	}
	if _, _, err := s.o.Devices.Do(ctx, device.Operation{Key: key, State: is, Source: s}); err != nil {
		return nil, refusal(fmt.Errorf("device %s: %w", key, err))
	}
	return &dmi.ReportDeviceStatesResponse{}, nil
}

// find names the device. Old mappers leave the namespace out: then the name must be
// that of one device alone, or of one in namespace default.
func (s *Server) find(namespace, name string) (twin.Key, error) {
	if namespace != "" {
		return twin.Key{Namespace: namespace, Name: name}, nil
	}
	var found []twin.Key
	for _, v := range s.o.Devices.List() {
		if v.Name != name {
			continue
		}
		if v.Namespace == "default" {
			return v.Key, nil
		}
		found = append(found, v.Key)
	}
	switch len(found) {
	case 0:
		return twin.Key{Name: name}, fmt.Errorf("device %q: %w", name, device.ErrUnknownDevice)
	case 1:
		return found[0], nil
	}
	return twin.Key{}, status.Errorf(codes.InvalidArgument, "the report names no namespace, and %d devices are called %q", len(found), name)
}

// refusal gives an error the code that tells a mapper what to do: InvalidArgument
// and NotFound never again as it is; ResourceExhausted and Unavailable later.
func refusal(err error) error {
	var rejected *twin.RejectedError
	code := codes.Unavailable // a full disk, a store that is closed
	switch {
	case status.Code(err) != codes.Unknown:
		return err
	case errors.As(err, &rejected), errors.Is(err, device.ErrTooLarge):
		code = codes.InvalidArgument
	case errors.Is(err, device.ErrUnknownDevice):
		code = codes.NotFound
	case errors.Is(err, device.ErrTooMany):
		code = codes.ResourceExhausted
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.Error(code, strings.ToValidUTF8(err.Error(), "?"))
}

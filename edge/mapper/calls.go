package mapper

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-edge/holdfast/common/dmi"
)

// RegisterDevice takes a device; one that is known is updated.
func (m *Mapper) RegisterDevice(_ context.Context, in *dmi.RegisterDeviceRequest) (*dmi.RegisterDeviceResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := keyOf(in.GetDevice())
	if err := m.set(in.GetDevice()); err != nil {
		return nil, err
	}
	return &dmi.RegisterDeviceResponse{DeviceName: key.Name, DeviceNamespace: key.Namespace}, nil
}

// UpdateDevice takes a device as it is now.
func (m *Mapper) UpdateDevice(_ context.Context, in *dmi.UpdateDeviceRequest) (*dmi.UpdateDeviceResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.set(in.GetDevice()); err != nil {
		return nil, err
	}
	return &dmi.UpdateDeviceResponse{}, nil
}

// RemoveDevice forgets a device.
func (m *Mapper) RemoveDevice(_ context.Context, in *dmi.RemoveDeviceRequest) (*dmi.RemoveDeviceResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(Key{in.GetDeviceNamespace(), in.GetDeviceName()})
	return &dmi.RemoveDeviceResponse{}, nil
}

// CreateDeviceModel takes a model; one that is known is replaced.
func (m *Mapper) CreateDeviceModel(_ context.Context, in *dmi.CreateDeviceModelRequest) (*dmi.CreateDeviceModelResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.models[Key{in.GetModel().GetNamespace(), in.GetModel().GetName()}] = in.GetModel()
	return &dmi.CreateDeviceModelResponse{DeviceModelName: in.GetModel().GetName(), DeviceModelNamespace: in.GetModel().GetNamespace()}, nil
}

// UpdateDeviceModel takes a model as it is now. Its devices are updated by calls of
// their own.
func (m *Mapper) UpdateDeviceModel(_ context.Context, in *dmi.UpdateDeviceModelRequest) (*dmi.UpdateDeviceModelResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.models[Key{in.GetModel().GetNamespace(), in.GetModel().GetName()}] = in.GetModel()
	return &dmi.UpdateDeviceModelResponse{}, nil
}

// RemoveDeviceModel forgets a model.
func (m *Mapper) RemoveDeviceModel(_ context.Context, in *dmi.RemoveDeviceModelRequest) (*dmi.RemoveDeviceModelResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.models, Key{in.GetModelNamespace(), in.GetModelName()})
	return &dmi.RemoveDeviceModelResponse{}, nil
}

// GetDevice returns a device as edgecore told it.
func (m *Mapper) GetDevice(_ context.Context, in *dmi.GetDeviceRequest) (*dmi.GetDeviceResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.devices[Key{in.GetDeviceNamespace(), in.GetDeviceName()}]
	if d == nil {
		return nil, status.Errorf(codes.NotFound, "there is no device %s/%s here", in.GetDeviceNamespace(), in.GetDeviceName())
	}
	return &dmi.GetDeviceResponse{Device: d}, nil
}

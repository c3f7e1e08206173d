mod earlier;
mod known;
mod linear_time;
mod locks;
mod outdates;
mod reads;
mod session_state;
mod transaction_control;
